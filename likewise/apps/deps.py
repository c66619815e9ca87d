"""Dependencies and helpers that the routes of every app share: callers, services, callers that leave, cursors."""

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from likewise.auth.caller import Scope
from likewise.auth.quotas import Quotas
from likewise.cleaning import cleaned
from likewise.embedding.embedder import Embedded, Embedder
from likewise.errors import Forbidden, Invalid
from likewise.runtime import Runtime
from likewise.stopping import stop

S = TypeVar("S")
T = TypeVar("T")

# Where a request's scope has its caller's tenant, once it is known.
TENANT = "likewise.tenant"


def runtime_of(request: Request) -> Runtime:
    """Return the open parts of the process."""
    runtime: Runtime = request.app.state.likewise.runtime
    return runtime


class Requires:
    """A FastAPI dependency: the tenant of a caller who has this scope; Unauthorized or Forbidden for others."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> int:
        """Decide by the headers alone."""
        headers = request.headers
        authentication = runtime_of(request).authentication
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
    return runtime_of(request).embedder


class ServiceOf(Generic[S]):
    """A FastAPI dependency: the service of an app, by its class."""

    def __init__(self, of: type[S]) -> None:
        self.of = of

    async def __call__(self, request: Request) -> S:
        """Return it from the open library, put there by the server when it started."""
        service: S = request.app.state.likewise.service(self.of)
        return service


# One of these is first in every route's signature: the tenant of a caller with that scope, or a route for everybody.
CanRead = Annotated[int, Depends(Requires(Scope.READ))]
CanWrite = Annotated[int, Depends(Requires(Scope.WRITE))]
CanAdminister = Annotated[int, Depends(Requires(Scope.ADMIN))]
Anyone = Annotated[None, Depends(nobody_is_asked)]

ProcessEmbedder = Annotated[Embedder, Depends(process_embedder)]


@dataclass(frozen=True)
class MeteredTexts:
    """The texts of one request: within its tenant's quota, and worked on for as long as its caller is there."""

    request: Request
    embedder: Embedder
    quotas: Quotas

    def spend_on(self, tenant: int, texts: Sequence[str], model: str | None) -> None:
        """Take texts from the quota; what is refused for its model takes nothing from it."""
        self.embedder.known(model)
        self.quotas.spend(tenant, texts)

    async def embed(self, tenant: int, texts: Sequence[str], pointer: Callable[[int], str], **options: Any) -> Embedded:
        """Return the vectors of texts; errors name the places of the request itself, by `pointer`."""
        self.spend_on(tenant, texts, options.get("model"))
        return await self.attended(self.embedder.embed(tenant, [cleaned(text) for text in texts], **options), pointer)

    async def attended(self, work: Coroutine[Any, Any, T], pointer: str | Callable[[int], str] = "/texts") -> T:
        """Return what the work gives, and end it if the caller leaves.

        Args:
            pointer: where in the request the text is that the work's faults have at `/texts/3`.
        """
        try:
            return await while_connected(self.request, work)
        except Invalid as error:
            raise error.moved("/texts", pointer) from None

    async def search(self, searching: Coroutine[Any, Any, T], *, rerank: bool | None) -> T:
        """Return what is found; a reranker's work is long enough that nobody may leave it behind."""
        return await (self.attended(searching) if rerank else searching)


async def metered_texts(request: Request) -> MeteredTexts:
    """Return the meter of a request."""
    runtime = runtime_of(request)
    return MeteredTexts(request, runtime.embedder, runtime.quotas)


Metered = Annotated[MeteredTexts, Depends(metered_texts)]


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


def page_of(
    listing: str, tenant: int, found: Sequence[T], limit: int, place: Callable[[T], str]
) -> tuple[Sequence[T], str | None]:
    """Return the rows of a page, and the cursor of the next; one row more than asked tells whether there is one."""
    shown = found[:limit]
    return shown, cursor_for(listing, tenant, place(shown[-1])) if len(found) > limit else None


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
