"""What surrounds every request, outermost first: its id and log line, errors, how many, address, body size.

Pure ASGI: Starlette's BaseHTTPMiddleware would copy bodies and hide a client that leaves.
"""

import asyncio
import re
import time
from http import HTTPStatus
from statistics import median
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from likewise.apps.body import NDJSON, RELEASE, media_type
from likewise.errors import Forbidden, Internal, LikewiseError, Malformed, Overloaded, TooLarge, Unavailable
from likewise.observe.logs import get_logger
from likewise.observe.metrics import METHODS, one_of
from likewise.observe.request_id import REQUEST_ID, request_id_for
from likewise.observe.steps import Answering
from likewise.server.problems import Refused, answer, as_likewise_error
from likewise.settings import LOOPBACK

MAX_HEADER_BYTES = 32 * 2**10
MAX_TARGET_BYTES = 8 * 2**10
# A body may pause this long, and take this long in all: 16 MiB at 140 kB/s.
PAUSE_SECONDS = 15.0
BODY_SECONDS = 120.0
# How long a body that is refused is still read, so that its sender comes to read the answer.
DRAIN_SECONDS = 2.0
# Of all bodies that are being read or worked on: sixteen of the largest, before parsing.
BODIES_BYTES = 256 * 2**20
# A body of lines is stored while it arrives.
STREAM_BYTES = 2**30
# A request waits for a connection or the model, of which there are some tens; behind these it would only grow old.
MOST_REQUESTS = 512
# What takes longer than this because others are before it is not worth letting in.
PATIENCE_SECONDS = 0.5
LEAST_REQUESTS = 8
# More are let in once so many have been seen to be done in time.
UNTRIED_REQUESTS = 64
# How long, and of how many requests at least, the time that they take is looked at.
LEARN_SECONDS, LEARN_REQUESTS = 0.5, 4
TOO_BUSY = Overloaded("The server has as many requests as it can hold; ask again.")
REFUSALS_SECONDS = 1.0
# In the scope of a request that was refused at the door.
REFUSED = "likewise.refused"
# For how many seconds a request waited for its own body.
WAITED = "likewise.waited"
# Who watches over a busy server must not take it for a dead one.
PROBES = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::\d{1,5})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# nginx's number for a client that left before its answer; it appears in logs only.
_CLIENT_LEFT = 499

log = get_logger("likewise.server")


class RequestLog:
    """Gives each request an id, puts it on the answer, and writes one log line with the route's template."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = request_id_for(headers.get("x-request-id"))
        token = REQUEST_ID.set(request_id)
        answered = _Answered(send, request_id)
        started = time.perf_counter()
        try:
            with Answering(scope["method"], headers, request_id) as step:
                try:
                    await self.app(scope, receive, answered.send)
                finally:
                    step.answered(_route(scope), answered.status)
                    if REFUSED not in scope:
                        _log_request(scope, answered.status, time.perf_counter() - started)
        finally:
            REQUEST_ID.reset(token)


class Errors:
    """Turns every exception into an answer; the log has its type and place, never its message."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answered = _Answered(send)
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
                (log.error if known.status == Internal.status else log.warning)("request failed", error=error)
            await answer(known, scope)(scope, receive, send)


class RequestLimit:
    """Refuses a request at once when as many as this server holds are running; probes are answered all the same.

    How many that is follows from how long requests take: what would wait for longer than a moment is refused, so that
    what was let in is done while somebody still wants it. Writes are counted apart, and so keep no search out.
    """

    def __init__(self, app: ASGIApp, most: int = MOST_REQUESTS, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.app = app
        self.writes = _Room(most, patience_seconds)
        self.others = _Room(most, patience_seconds)
        self.most = most
        self._refused = 0
        self._told = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        room = self.writes if scope["method"] == "POST" and scope["path"].endswith("/records") else self.others
        if room.running >= room.allowed or self.writes.running + self.others.running >= self.most:
            await self._refuse(scope, receive, send)
            return
        room.running += 1
        began = time.monotonic()
        answered = _Answered(send)
        try:
            await self.app(scope, receive, answered.send)
        finally:
            room.running -= 1
            # What was refused took no work, and how slowly a body came says nothing of this server.
            if answered.status is not None and answered.status < HTTPStatus.BAD_REQUEST and not _is_stream(scope):
                room.learn(began + scope.get(WAITED, 0.0), time.monotonic())

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is refused must cost next to nothing: thousands a second get one log line together."""
        scope[REFUSED] = True
        self._refused += 1
        now = time.monotonic()
        if now - self._told >= REFUSALS_SECONDS:
            log.warning("requests refused", count=self._refused)
            self._refused, self._told = 0, now
        await answer(TOO_BUSY, scope)(scope, receive, send)


class _Room:
    """How many requests of one sort may run: as many as are done within the patience (Little's law)."""

    def __init__(self, most: int, patience_seconds: float) -> None:
        self.most = most
        self.patience_seconds = patience_seconds
        self.allowed = min(most, UNTRIED_REQUESTS)
        self.running = 0
        self._took: list[float] = []
        self._since = time.monotonic()

    def learn(self, began: float, now: float) -> None:
        """Take in that a request has ended."""
        self._took.append(now - began)
        if now - self._since < LEARN_SECONDS or len(self._took) < LEARN_REQUESTS:
            return
        typical, in_time = median(self._took), round(len(self._took) / (now - self._since) * self.patience_seconds)
        if typical > self.patience_seconds:
            self.allowed = min(self.most, max(LEAST_REQUESTS, in_time))
        elif typical < self.patience_seconds / 2:
            recovered = min(UNTRIED_REQUESTS, 2 * self.allowed)
            self.allowed = min(self.most, max(self.allowed, recovered, 2 * in_time))
        self._took, self._since = [], now


class AddressGuard:
    """Refuses requests that a browser was tricked into sending, and lines too long to be meant.

    Without authentication being on this machine is the credential. A page of another site can make a browser on this
    machine send requests here, by a name of its own that it lets point to 127.0.0.1 (DNS rebinding) or across origins.
    """

    def __init__(self, app: ASGIApp, loopback_only: bool) -> None:
        self.app = app
        self.loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            _refuse_oversized(scope)
            if self.loopback_only:
                _refuse_foreign(scope["method"], Headers(scope=scope))
        await self.app(scope, receive, send)


class BodyLimit:
    """Counts a body while it is read; what it says about its own length is believed only to refuse sooner.

    Sooner is when somebody begins to read it: who may not call hears that first, however large the body is. All bodies
    together have a limit too: each counts until its request is answered. A body of lines, which are stored while it
    arrives, may be longer, and counts as far as its lines are not stored yet.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        total: int = BODIES_BYTES,
        stream_limit: int = STREAM_BYTES,
        pause_seconds: float = PAUSE_SECONDS,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self.app = app
        self.limit = limit
        self.stream_limit = max(stream_limit, limit)
        self.total = max(total, limit)
        self.held = 0
        self.pause_seconds = pause_seconds
        self.body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        streamed = _is_stream(scope)
        limit = self.stream_limit if streamed else self.limit
        body = _CountedBody(receive, self, limit, _declared_length(headers), streamed=streamed)
        try:
            if streamed:
                await self._stream({**scope, RELEASE: body.release}, body, send)
            else:
                await self.app(scope, body.receive, send)
        except TooLarge as refusal:
            # A caller that asks first (curl, above 1 MiB) sends nothing more once it is told no.
            if not body.unread or "expect" in headers:
                raise
            await _answer_and_drain(answer(refusal, scope), scope, body, send)
        finally:
            body.release(body.held)
            scope[WAITED] = body.waited

    async def _stream(self, scope: Scope, body: "_CountedBody", send: Send) -> None:
        """Whatever is said before the body has ended: its sender comes to read it."""
        try:
            await self.app(scope, body.receive, _after_body(body, send))
        except LikewiseError:
            # A caller that asks first has sent nothing, and sends nothing more once it is told no.
            if body.held or "expect" not in Headers(scope=scope):
                await body.drain()
            raise


class _CountedBody:
    def __init__(self, receive: Receive, bounds: BodyLimit, limit: int, declared: int, *, streamed: bool) -> None:
        self._receive = receive
        self._bounds = bounds
        self.limit = limit
        self._declared = declared
        self._streamed = streamed
        self._read = 0
        self.unread = True
        self.held = 0
        self._complete = False
        self.waited = 0.0

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        if self.unread:
            self._refuse_declared()
        self.unread = False
        message = await self._in_time()
        self._count(message)
        if self._read > self.limit:
            await self.drain()
            raise self.too_large()
        self._hold(len(message.get("body", b"")))
        return message

    async def drain(self) -> None:
        """Read on for a moment: closing on a caller that still sends would take the answer from it."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._complete:
                    self._count(await self._receive())
        except TimeoutError:
            pass

    def too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than this server takes: at most {self.limit} bytes.")

    def too_many(self) -> Overloaded:
        return Overloaded("The server holds as many bytes of requests as it can; send this again.")

    def release(self, count: int) -> None:
        """So many bytes of it are done with."""
        self._bounds.held -= count
        self.held -= count

    def _refuse_declared(self) -> None:
        if self._declared > self.limit:
            raise self.too_large()
        if not self._streamed and self._bounds.held + self._declared > self._bounds.total:
            raise self.too_many()

    def _hold(self, count: int) -> None:
        if self._bounds.held + count > self._bounds.total:
            raise self.too_many()
        self._bounds.held += count
        self.held += count

    async def _in_time(self) -> Message:
        # What is longer than a plain body has the time that it takes at the pace that the longest of those needs.
        allowed = self._bounds.body_seconds * max(1.0, self._read / self._bounds.limit)
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(self._bounds.pause_seconds, allowed - self.waited)):
                return await self._receive()
        except TimeoutError:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time.") from None
        finally:
            self.waited += time.monotonic() - began

    def _count(self, message: Message) -> None:
        self._read += len(message.get("body", b""))
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)


def _after_body(body: _CountedBody, send: Send) -> Send:
    """Sends an answer whose end waits until the body has been read, for a moment at most."""

    async def send_and_drain(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            await send({**message, "more_body": True})
            await body.drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return send_and_drain


async def _answer_and_drain(refusal: Response, scope: Scope, body: _CountedBody, send: Send) -> None:
    """Answer at once, then read on for a moment before the answer ends and with it the connection."""
    await refusal(scope, body.receive, _after_body(body, send))


class _Answered:
    """Passes messages on, remembers the status, and adds the request's id."""

    def __init__(self, send: Send, request_id: str | None = None) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._request_id is not None:
                MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)


def _is_stream(scope: Scope) -> bool:
    """Whether the body is one of lines, which is stored while it arrives."""
    return media_type(Headers(scope=scope)) == NDJSON


def _declared_length(headers: Headers) -> int:
    """What the request says about itself; 0 if nothing, or nothing that is a number."""
    declared = headers.get("content-length", "0")
    # Python reads at most 4,300 digits, and nobody sends more bytes than 18 of them can count.
    return int(declared[:19]) if declared.isdecimal() else 0


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
    """The template, because a path may hold somebody's ids; None where no route fits."""
    return getattr(scope.get("route"), "path", None)


def _refuse_oversized(scope: Scope) -> None:
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET_BYTES:
        raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"An address may have {MAX_TARGET_BYTES} bytes.")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"Headers may have {MAX_HEADER_BYTES} bytes.")
    if _CONTROL.search(scope["path"]):
        raise Malformed("The address contains control characters.")


def _refuse_foreign(method: str, headers: Headers) -> None:
    hosts = headers.getlist("host")
    if len(hosts) != 1:
        raise Malformed("The request needs exactly one Host header.")
    host = _HOST.fullmatch(hosts[0].strip())
    if host is None or not _is_loopback(host[1]):
        raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "Call this server as localhost, 127.0.0.1 or [::1].")
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
