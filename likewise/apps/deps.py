"""Dependencies and helpers that the routes of every app share: callers, services, callers that leave, cursors."""

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import Coroutine
from typing import Annotated, Any, Generic, Protocol, TypeVar

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from likewise.auth.caller import Scope
from likewise.auth.quotas import Quotas
from likewise.embedding.embedder import Embedder
from likewise.errors import Forbidden, Invalid
from likewise.runtime import Runtime
from likewise.stopping import stop

S = TypeVar("S")
T = TypeVar("T")

# Where a request's scope has its caller's tenant, once it is known.
TENANT = "likewise.tenant"


class Services(Protocol):
    """The part of `library.Likewise` that routes need: the library knows the apps and so cannot be known by them."""

    @property
    def runtime(self) -> Runtime:
        """The open parts."""
        ...

    def service(self, of: type[S]) -> S:
        """Return the service of this class."""
        ...


def services(request: Request) -> Services:
    """Return the open library, put there by the server when it started."""
    opened: Services = request.app.state.likewise
    return opened


class Requires:
    """A FastAPI dependency: the tenant of a caller who has this scope; Unauthorized or Forbidden for others."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> int:
        """Decide by the headers alone."""
        headers = request.headers
        authentication = services(request).runtime.authentication
        caller = await authentication.caller(headers.getlist("authorization"), headers.getlist("x-api-key"))
        if self.scope not in caller.scopes:
            raise Forbidden(
                f"This needs the scope `{self.scope}`, which these credentials do not have.", code="insufficient_scope"
            )
        request.scope[TENANT] = caller.tenant
        return caller.tenant


async def nobody_is_asked() -> None:
    """Mark a route that is open to everybody."""


async def process_embedder(request: Request) -> Embedder:
    """Return the process's embedder."""
    return services(request).runtime.embedder


async def process_quotas(request: Request) -> Quotas:
    """Return the quotas of the process's tenants."""
    return services(request).runtime.quotas


class ServiceOf(Generic[S]):
    """A FastAPI dependency: the service of an app, by its class."""

    def __init__(self, of: type[S]) -> None:
        self.of = of

    async def __call__(self, request: Request) -> S:
        """Return it."""
        return services(request).service(self.of)


# One of these is first in every route's signature: the tenant of a caller with that scope, or a route for everybody.
CanRead = Annotated[int, Depends(Requires(Scope.READ))]
CanWrite = Annotated[int, Depends(Requires(Scope.WRITE))]
CanAdminister = Annotated[int, Depends(Requires(Scope.ADMIN))]
Anyone = Annotated[None, Depends(nobody_is_asked)]

ProcessEmbedder = Annotated[Embedder, Depends(process_embedder)]
ProcessQuotas = Annotated[Quotas, Depends(process_quotas)]


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work gives; end it if the caller leaves, with ClientDisconnect. The body has been read."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await stop([working, leaving])


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def cursor_for(listing: str, tenant: int, after: str) -> str:
    """Return an opaque cursor: the place where the next page of one listing of one tenant begins."""
    return base64.urlsafe_b64encode(_seal(listing, tenant, after) + after.encode()).rstrip(b"=").decode()


def position_of(listing: str, tenant: int, cursor: str, position: re.Pattern[str]) -> str:
    """Return the place of a cursor of ours; Invalid for any other, another tenant's and another listing's included.

    The seal is no secret, so what it seals must be a `position` that the listing can have.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        after = raw[_SEAL:].decode()
    except (binascii.Error, ValueError):
        raise forged() from None
    if cursor != cursor_for(listing, tenant, after) or not position.fullmatch(after):
        raise forged()
    return after


# The seal tells cursors apart; it is no secret, because a position gives nothing that the tenant may not read.
_SEAL = 8


def _seal(listing: str, tenant: int, after: str) -> bytes:
    return hashlib.blake2b(f"{listing}\0{tenant}\0{after}".encode(), digest_size=_SEAL).digest()


def forged() -> Invalid:
    """Return the refusal of a cursor that is none of ours."""
    return Invalid.at("/cursor", "This is not a cursor of this list; start without one.", "invalid_cursor")
