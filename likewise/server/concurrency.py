"""How many requests may run at once: what would only wait is refused at the door."""

import time
from http import HTTPStatus
from statistics import median

from starlette.types import ASGIApp, Receive, Scope, Send

from likewise.errors import Overloaded
from likewise.observe.logs import get_logger
from likewise.server.answered import Answered
from likewise.server.bodies import WAITED, is_stream
from likewise.server.place import PLACE, Place
from likewise.server.problems import answer

# A request waits for a connection or the model, of which there are some tens; behind these it would only grow old.
MOST_REQUESTS = 512
# What takes longer than this because others are before it is not worth letting in.
PATIENCE_SECONDS = 0.5
# Embedding takes as long as its texts are many: what may wait is counted in tokens where they wait. A remote model may
# keep them for minutes, so that they get no more than half of all places.
EMBEDDING_SECONDS = 30.0
LEAST_REQUESTS = 8
# More are let in once so many have been seen to be done in time.
UNTRIED_REQUESTS = 64
# How long, and of how many requests at least, the time that they take is looked at.
LEARN_SECONDS, LEARN_REQUESTS = 0.5, 4
TOO_BUSY = Overloaded("The server has as many requests as it can hold; ask again.")
REFUSALS_SECONDS = 1.0
# In the scope of a request that was refused at the door.
REFUSED = "likewise.refused"
# Whose texts wait in a model's queue.
EMBEDDING_PATHS = frozenset({"/v1/embeddings", "/v1/rerank", "/embed/text", "/embed/batch", "/embed/query"})
# Whose texts are cut in parts, one after the other: as long as they are, they keep nobody else waiting.
SPLITTING_PATHS = frozenset({"/vectors/documents"})
WRITING_PATHS = frozenset({"/vectors/embed", "/vectors/embed/batch", "/vectors/mock"})
# Who watches over a busy server must not take it for a dead one.
PROBES = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})

log = get_logger("likewise.server")


class RequestLimit:
    """Refuses a request at once when as many as this server holds are running; probes are answered all the same.

    How many that is follows from how long requests take: what would wait for longer than a moment is refused, so that
    what was let in is done while somebody still wants it. Writes and texts to embed are counted apart, and so keep no
    search out; nor does one whose body is still to come keep anybody out.
    """

    def __init__(self, app: ASGIApp, most: int = MOST_REQUESTS, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.app = app
        self.writes = _Room(most, patience_seconds)
        self.embeddings = _Room(most // 2, EMBEDDING_SECONDS)
        self.splitting = _Room(max(LEAST_REQUESTS, most // 8), EMBEDDING_SECONDS)
        self.others = _Room(most, patience_seconds)
        self.most = most
        self._rooms = (self.writes, self.embeddings, self.splitting, self.others)
        self._refused = 0
        self._told = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        room = self._room_of(scope)
        if room.running >= room.allowed or sum(one.running for one in self._rooms) >= self.most:
            await self._refuse(scope, receive, send)
            return
        place = scope[PLACE] = Place(room)
        began = time.monotonic()
        answered = Answered(send)
        try:
            await self.app(scope, receive, answered.send)
        finally:
            place.leave()
            # What was refused took no work, and how slowly a body came says nothing of this server.
            if answered.status is not None and answered.status < HTTPStatus.BAD_REQUEST and not is_stream(scope):
                room.learn(began + scope.get(WAITED, 0.0), time.monotonic())

    def _room_of(self, scope: Scope) -> "_Room":
        if scope["method"] != "POST":
            return self.others
        path: str = scope["path"]
        if path.endswith("/records") or path in WRITING_PATHS:
            return self.writes
        if path in SPLITTING_PATHS:
            return self.splitting
        return self.embeddings if path in EMBEDDING_PATHS else self.others

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is refused must cost next to nothing: thousands a second get one log line together."""
        scope[REFUSED] = True
        self._refused += 1
        now = time.monotonic()
        if now - self._told >= REFUSALS_SECONDS:
            log.warning("requests_refused", count=self._refused)
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
