"""Limits of bodies: their size, each and all together, and the time that they may take."""

import asyncio
import contextlib
import time
from collections import Counter
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from likewise.apps.body import RELEASE
from likewise.apps.declaration import declaration_in
from likewise.apps.deps import TENANT
from likewise.errors import LikewiseError, Overloaded, TooLarge, TooManyRequests
from likewise.server.concurrency import permit_of
from likewise.server.inflating import MAX_RATIO, Inflater
from likewise.server.layer import HttpLayer
from likewise.server.problems import Rejection, answer

# A body may pause this long, and take this long in all: 16 MiB at 140 kB/s.
PAUSE_SECONDS = 15.0
BODY_SECONDS = 120.0
# How long a body that is refused is still read, so that its sender comes to read the answer.
DRAIN_SECONDS = 2.0
# Of all bodies that are being read or worked on: sixteen of the largest, before parsing.
BODIES_BYTES = 256 * 2**20
# Of these, what was inflated: that costs who sends it next to nothing, and must leave room for what others send whole.
INFLATED_BYTES = 64 * 2**20
# A body of lines is stored while it arrives.
STREAM_BYTES = 2**30
# Of so many requests of one tenant the bodies may be waited for at a time: each holds a connection and some memory.
MAX_AWAITED = 256


class BodyLimit(HttpLayer):
    """Counts a body while it is read; its declared length is believed only to refuse it sooner.

    Sooner is when somebody begins to read it: who may not call hears that first, however large the body is. All bodies
    together have a limit too: each counts until its request is answered. A body that its route works on while it
    arrives may be longer, and counts as far as it is not done with. One that its route takes compressed is inflated
    while it is read, and counts inflated, among the others and within a limit of its kind.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        total: int = BODIES_BYTES,
        inflated_total: int = INFLATED_BYTES,
        stream_limit: int = STREAM_BYTES,
        pause_seconds: float = PAUSE_SECONDS,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        super().__init__(app)
        self.limit = limit
        self.stream_limit = max(stream_limit, limit)
        self.total = max(total, limit)
        self.inflated_total = inflated_total
        self.held = 0
        self.inflated = 0
        self.awaited: Counter[int | None] = Counter()
        self.pause_seconds = pause_seconds
        self.body_seconds = body_seconds

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        declared, headers = declaration_in(scope).body, Headers(scope=scope)
        streamed, coding = declared.is_streamed(headers), declared.encoding(headers)
        limit = self.stream_limit if streamed else declared.max_bytes or self.limit
        body = _CountedBody(scope, receive, self, limit, streamed=streamed, coding=coding)
        try:
            if streamed:
                # In the scope itself: in a copy nobody outside would learn which route it was.
                scope[RELEASE] = body.release
                await self._stream(scope, body, send)
            else:
                await self.app(scope, body.receive, send)
        except (TooLarge, TooManyRequests, Overloaded) as refusal:
            if body.is_inflated and not (streamed or body.unread):
                # Others have its room first, so that of many that came at once the last is taken whole. What was
                # inflated of it hangs on the traceback.
                body.release(body.held)
                refusal.__traceback__ = None
                await body.drain()
            if isinstance(refusal, Overloaded):
                raise
            # A caller that asks first (curl, above 1 MiB) sends nothing more once it is told no.
            if not body.unread or "expect" in headers:
                raise
            # At once; then it is read on for a moment before the answer ends and with it the connection.
            await answer(refusal, scope)(scope, body.receive, _after_body(body, send))
        finally:
            body.release(body.held)
            body.arrived()

    async def _stream(self, scope: Scope, body: "_CountedBody", send: Send) -> None:
        """Let the sender of a body read an answer that comes before the body has ended."""
        try:
            await self.app(scope, body.receive, _after_body(body, send))
        except LikewiseError:
            # A caller that asks first has sent nothing, and sends nothing more once it is told no.
            if body.held or "expect" not in Headers(scope=scope):
                await body.drain()
            raise


class _CountedBody:
    def __init__(
        self, scope: Scope, receive: Receive, bounds: BodyLimit, limit: int, *, streamed: bool, coding: str | None
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._bounds = bounds
        self._permit = permit_of(scope)
        self.limit = limit
        self._declared = _declared_length(Headers(scope=scope))
        self._streamed = streamed
        self._inflater = Inflater(coding) if coding else None
        self.is_inflated = coding is not None
        # One alone always fits, unless it is worked on while it arrives.
        self._max_inflated = max(bounds.inflated_total, 0 if streamed else limit)
        self._read = 0
        self.unread = True
        self.held = 0
        self._complete = False
        self.waited = 0.0
        self._expected = False

    async def receive(self) -> Message:
        if self._inflater is None:
            message = await self._next()
            self._hold(len(message.get("body", b"")))
            return message
        return await self._inflate(self._inflater)

    async def _inflate(self, inflater: Inflater) -> Message:
        """The next piece of what the body inflates to; the last one is empty."""
        piece = inflater.piece()
        while not piece:
            if self._complete:
                inflater.end()
                self._inflater = None
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await self._next()
            if message["type"] != "http.request":
                return message
            inflater.feed(message.get("body", b""))
            piece = inflater.piece()
        self._refuse_inflated(inflater)
        self._hold(len(piece))
        # Inflating is work of our own that nothing waits for: others have their turn between two pieces.
        await asyncio.sleep(0)
        return {"type": "http.request", "body": piece, "more_body": True}

    def _refuse_inflated(self, inflater: Inflater) -> None:
        if inflater.inflated > self.limit:
            raise self.too_large()
        if inflater.is_bomb:
            raise TooLarge(f"The body inflates to more than {MAX_RATIO} times its bytes; send it uncompressed.")

    async def _next(self) -> Message:
        if self._complete:
            return await self._receive()
        if self.unread:
            self._refuse_declared()
            self._expect()
        self.unread = False
        message = await self._in_time()
        self._count(message)
        if self._read > self.limit:
            await self.drain()
            raise self.too_large()
        return message

    async def drain(self) -> None:
        """Read on for a moment: closing on a caller that still sends would take the answer from it."""
        with contextlib.suppress(TimeoutError), self._paused():
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._complete:
                    self._count(await self._receive())

    def too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than this server takes: at most {self.limit} bytes.")

    def too_many(self) -> Overloaded:
        return Overloaded("The server holds as many bytes of requests as it can; send this again.")

    def release(self, count: int) -> None:
        """Release bytes of it that are done with."""
        self._keep(-count)

    def _refuse_declared(self) -> None:
        if self._declared > self.limit:
            raise self.too_large()
        if not self._streamed and not self._fits(self._declared):
            raise self.too_many()

    def _hold(self, count: int) -> None:
        # A message without bytes always fits: that the caller has left is one.
        if count and not self._fits(count):
            raise self.too_many()
        self._keep(count)

    def _fits(self, count: int) -> bool:
        bounds = self._bounds
        has_room = not self.is_inflated or bounds.inflated + count <= self._max_inflated
        return has_room and bounds.held + count <= bounds.total

    def _keep(self, count: int) -> None:
        self.held += count
        self._bounds.held += count
        if self.is_inflated:
            self._bounds.inflated += count

    async def _in_time(self) -> Message:
        # What is longer than a plain body has the time that it takes at the pace that the longest of those needs.
        allowed = self._bounds.body_seconds * max(1.0, self._read / self._bounds.limit)
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(self._bounds.pause_seconds, allowed - self.waited)):
                with self._paused():
                    return await self._receive()
        except TimeoutError:
            raise Rejection(HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time.") from None
        finally:
            self.waited += time.monotonic() - began

    def _paused(self) -> contextlib.AbstractContextManager[None]:
        """While more of a body is awaited its request keeps no other out, one that is refused included."""
        return self._permit.paused() if self._permit else contextlib.nullcontext()

    def _expect(self) -> None:
        """Count among those of its tenant that are on their way, from its first byte to its last."""
        awaited, tenant = self._bounds.awaited, self._scope.get(TENANT)
        if awaited[tenant] >= MAX_AWAITED:
            raise TooManyRequests("Too many requests wait for their bodies; send this again.", retry_after=1)
        awaited[tenant] += 1
        self._expected = True

    def arrived(self) -> None:
        """Note that it is on its way no more: it is here, or nobody waits for it."""
        if self._expected:
            self._expected = False
            self._bounds.awaited[self._scope.get(TENANT)] -= 1
            # Without those of whom there are none.
            self._bounds.awaited = +self._bounds.awaited

    def _count(self, message: Message) -> None:
        self._read += len(message.get("body", b""))
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self._complete:
            self.arrived()


def _after_body(body: _CountedBody, send: Send) -> Send:
    """Send an answer whose end waits until the body has been read, for a moment at most."""

    async def send_and_drain(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            await send({**message, "more_body": True})
            await body.drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return send_and_drain


def _declared_length(headers: Headers) -> int:
    """The length that a request declares; 0 if none, or nothing that is a number."""
    declared = headers.get("content-length", "0")
    # Python reads at most 4,300 digits, and nobody sends more bytes than 18 of them can count.
    return int(declared[:19]) if declared.isdecimal() else 0
