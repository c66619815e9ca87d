"""Layers around every request: its id and log line, its errors, and the address that it came by.

How many there may be is in `concurrency`, and how large their bodies in `bodies`.
"""

import asyncio
import re
import time
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from likewise.errors import Forbidden, Internal, Malformed, Overloaded, Unavailable
from likewise.observe.logs import REQUEST_ID, get_logger, request_id_for
from likewise.observe.metrics import METHODS, one_of
from likewise.observe.steps import RequestStep
from likewise.server.concurrency import REFUSED
from likewise.server.layer import HttpLayer, SentResponse
from likewise.server.problems import Rejection, answer, as_likewise_error
from likewise.settings import LOOPBACK

MAX_HEADER_BYTES = 32 * 2**10
MAX_TARGET_BYTES = 8 * 2**10

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::\d{1,5})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# nginx's number for a client that left before its answer; it appears in logs only.
_CLIENT_LEFT = 499

log = get_logger("likewise.server")


class RequestLog(HttpLayer):
    """Gives each request an id, puts it on the answer, and writes one log line with the route's template."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        headers = Headers(scope=scope)
        request_id = request_id_for(headers.get("x-request-id"))
        token = REQUEST_ID.set(request_id)
        answered = SentResponse(send, request_id)
        started = time.perf_counter()
        try:
            with RequestStep(scope["method"], headers, request_id) as step:
                try:
                    await self.app(scope, receive, answered.send)
                finally:
                    step.answered(_route(scope), answered.status)
                    if REFUSED not in scope:
                        _log_request(scope, answered.status, time.perf_counter() - started)
        finally:
            REQUEST_ID.reset(token)


class Errors(HttpLayer):
    """Turns every exception into an answer; the log has its type and place, never its message."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        answered = SentResponse(send)
        try:
            await self.app(scope, receive, answered.send)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            # Only a server that stops cancels a request, after the time for draining.
            if answered.status is not None:
                raise
            error = Unavailable("The server is stopping; ask again.", code="stopping", retry_after=5)
            await answer(error, scope)(scope, receive, send)
        except Exception as error:
            if answered.status is not None:
                raise
            known = as_likewise_error(error)
            # A refusal is nothing to look into, and there may be thousands; the request's own line has its status.
            if known.status >= Internal.status and not isinstance(known, Overloaded):
                (log.error if known.status == Internal.status else log.warning)("request_failed", error=error)
            await answer(known, scope)(scope, receive, send)


class AddressGuard(HttpLayer):
    """Refuses requests that a browser was tricked into sending, and lines too long to be meant.

    Without authentication being on this machine is the credential. A page of another site can make a browser on this
    machine send requests here, by a name of its own that it lets point to 127.0.0.1 (DNS rebinding) or across origins.
    """

    def __init__(self, app: ASGIApp, loopback_only: bool) -> None:
        super().__init__(app)
        self.loopback_only = loopback_only

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        _refuse_oversized(scope)
        if self.loopback_only:
            _refuse_foreign(scope["method"], Headers(scope=scope))
        await self.app(scope, receive, send)


def _log_request(scope: Scope, status: int | None, seconds: float) -> None:
    log.info(
        "request",
        # One of those that there are, because it may be any word of the caller's.
        method=one_of(scope["method"], METHODS),
        route=_route(scope),
        status=_CLIENT_LEFT if status is None else status,
        ms=round(seconds * 1000, 1),
    )


def _route(scope: Scope) -> str | None:
    """The template of the route, because a path may hold somebody's ids; None where no route fits."""
    return getattr(scope.get("route"), "path", None)


def _refuse_oversized(scope: Scope) -> None:
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET_BYTES:
        raise Rejection(HTTPStatus.REQUEST_URI_TOO_LONG, f"An address may have {MAX_TARGET_BYTES} bytes.")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        raise Rejection(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"Headers may have {MAX_HEADER_BYTES} bytes.")
    if _CONTROL.search(scope["path"]):
        raise Malformed("The address contains control characters.")


def _refuse_foreign(method: str, headers: Headers) -> None:
    hosts = headers.getlist("host")
    if len(hosts) != 1:
        raise Malformed("The request needs exactly one Host header.")
    host = _HOST.fullmatch(hosts[0].strip())
    if host is None or not _is_loopback(host[1]):
        raise Rejection(HTTPStatus.MISDIRECTED_REQUEST, "Call this server as localhost, 127.0.0.1 or [::1].")
    origin = headers.get("origin")
    if origin is not None and method not in _SAFE_METHODS and not _is_local_page(origin):
        raise Forbidden("Without authentication no page of another site may write here.")


def _is_loopback(name: str) -> bool:
    return name.strip("[]").lower() in LOOPBACK


def _is_local_page(origin: str) -> bool:
    try:
        return _is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return False
