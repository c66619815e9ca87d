"""Admission of requests: those that would only wait are refused at the door."""

import contextlib
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from statistics import median

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from likewise.apps.declaration import Load, RouteDeclaration, keep_declaration
from likewise.errors import Overloaded
from likewise.observe.logs import get_logger
from likewise.server.layer import HttpLayer, SentResponse
from likewise.server.problems import answer

# A request waits for a connection or the model, of which there are some tens; behind these it would only grow old.
MAX_REQUESTS = 512
# What takes longer than this because others are before it is not worth letting in.
PATIENCE_SECONDS = 0.5
# Embedding takes as long as its texts are many: what may wait is counted in tokens where they wait. A remote model may
# keep them for minutes, so that they get no more than half of all permits.
EMBEDDING_SECONDS = 30.0
MIN_REQUESTS = 8
# More are let in once so many have been seen to be done in time.
UNTRIED_REQUESTS = 64
# How long, and of how many requests at least, the time that they take is looked at.
LEARN_SECONDS, LEARN_REQUESTS = 0.5, 4
TOO_BUSY = Overloaded("The server has as many requests as it can hold; ask again.")
REFUSALS_SECONDS = 1.0
# In the scope of a request that was refused at the door.
REFUSED = "likewise.refused"
# Where a request's scope has its permit.
PERMIT = "likewise.permit"

log = get_logger("likewise.server")


class RequestLimit(HttpLayer):
    """Refuses a request at once when as many as this server holds are running; probes are answered all the same.

    How many that is follows from how long requests take: what would wait for longer than a moment is refused, so that
    what was let in is done while somebody still wants it. Each class of load is counted apart, so that writes and texts
    to embed keep no search out; nor does a request whose body is still to come keep anybody out.

    Args:
        find: what the route of a request declares.
    """

    def __init__(
        self,
        app: ASGIApp,
        find: Callable[[Scope], RouteDeclaration | None],
        max_requests: int = MAX_REQUESTS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        super().__init__(app)
        self.find = find
        self.max_requests = max_requests
        splitting = max(MIN_REQUESTS, max_requests // 8)
        self.limiters = {
            Load.WRITE: ConcurrencyLimiter(max_requests, patience_seconds),
            Load.EMBEDDING: ConcurrencyLimiter(max_requests // 2, EMBEDDING_SECONDS),
            Load.SPLITTING: ConcurrencyLimiter(splitting, EMBEDDING_SECONDS),
            Load.OTHER: ConcurrencyLimiter(max_requests, patience_seconds),
        }
        self._refused = 0
        self._logged = 0.0

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        declared = keep_declaration(scope, self.find(scope))
        if declared.load is Load.PROBE:
            await self.app(scope, receive, send)
            return
        limiter = self.limiters[declared.load]
        running = sum(one.running for one in self.limiters.values())
        if limiter.running >= limiter.allowed or running >= self.max_requests:
            await self._refuse(scope, receive, send)
            return
        permit = scope[PERMIT] = Permit(limiter)
        began = time.monotonic()
        answered = SentResponse(send)
        try:
            await self.app(scope, receive, answered.send)
        finally:
            permit.release()
            # What was refused took no work, and how slowly a body came says nothing of this server.
            done = answered.status is not None and answered.status < HTTPStatus.BAD_REQUEST
            if done and not declared.body.is_streamed(Headers(scope=scope)):
                limiter.learn(began + permit.paused_seconds, time.monotonic())

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request at next to no cost: thousands a second get one log line together."""
        scope[REFUSED] = True
        self._refused += 1
        now = time.monotonic()
        if now - self._logged >= REFUSALS_SECONDS:
            log.warning("requests_refused", count=self._refused)
            self._refused, self._logged = 0, now
        await answer(TOO_BUSY, scope)(scope, receive, send)


class ConcurrencyLimiter:
    """A limit of the requests of one class of load: as many may run as end within the patience (Little's law)."""

    def __init__(self, max_requests: int, patience_seconds: float) -> None:
        self.max_requests = max_requests
        self.patience_seconds = patience_seconds
        self.allowed = min(max_requests, UNTRIED_REQUESTS)
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
            self.allowed = min(self.max_requests, max(MIN_REQUESTS, in_time))
        elif typical < self.patience_seconds / 2:
            recovered = min(UNTRIED_REQUESTS, 2 * self.allowed)
            self.allowed = min(self.max_requests, max(self.allowed, recovered, 2 * in_time))
        self._took, self._since = [], now


class Permit:
    """The permit of one request to run: it counts while there is something to do, and not while it is paused."""

    def __init__(self, limiter: ConcurrencyLimiter) -> None:
        self._limiter = limiter
        self._limiter.running += 1
        self.paused_seconds = 0.0

    def release(self) -> None:
        """Let another run."""
        self._limiter.running -= 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let another run meanwhile; afterwards this one runs again, whoever runs by then: what is begun is done."""
        began = time.monotonic()
        self._limiter.running -= 1
        try:
            yield
        finally:
            self._limiter.running += 1
            self.paused_seconds += time.monotonic() - began


def permit_of(scope: Scope) -> Permit | None:
    """Return the permit of a request; None of one that is never refused."""
    found: Permit | None = scope.get(PERMIT)
    return found
