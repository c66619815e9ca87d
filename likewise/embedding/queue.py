"""A text on its way through a model: waiting in a lane, in flight for all its callers, and its outcome."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial

from likewise.embedding.cache import Cached
from likewise.embedding.provider import Capacity, Lane, Role, estimated_tokens
from likewise.errors import Fault, Internal, Invalid, LikewiseError, ModelUnavailable, Overloaded

INTERACTIVE_TOKENS = 4_096  # in one call: 0.1 s of a small model, and the next interactive text waits for it
WINDOW = {"interactive": 256, "bulk": 1_024}  # texts sorted by length at a time; whoever comes later waits for them


def lane_of(texts: Sequence[str]) -> Lane:
    """Return the lane of a call: few tokens are interactive."""
    return "bulk" if sum(map(estimated_tokens, texts)) > INTERACTIVE_TOKENS else "interactive"


class QueueBudget:
    """Tokens that may wait in one process, over all models."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def take(self, tokens: int) -> None:
        """Hold so many; Overloaded if they do not fit. A caller that finds the queue empty is never refused."""
        if self._held and self._held + tokens > self._limit:
            raise Overloaded(
                "Too many texts wait for the model; send this again later.", retry_after=self._retry_after()
            )
        self._held += tokens

    def give_back(self, tokens: int) -> None:
        """Hold so many fewer."""
        self._held -= tokens

    def _retry_after(self) -> int:
        return max(1, min(60, math.ceil(self._held / 20_000)))  # tokens a second on two cores


Charge = Callable[[Cached], None]
Outcome = Cached | LikewiseError


@dataclass(eq=False)
class QueuedText:
    """One text on its way through the model, and the number of callers that wait for it.

    `max_texts` may be in its batch; `charge` is called with what the model made of it. It is `left_behind` once the
    caller that brought it waits no more.
    """

    text: str
    role: Role
    lane: Lane
    future: asyncio.Future[Cached]
    # Of its request, for log lines and spans: a batch begins when another ends, which may be anybody's.
    context: Context
    max_texts: int
    charge: Charge | None = None
    taken: bool = False
    waiters: int = 0
    left_behind: bool = False

    @property
    def tokens(self) -> int:
        """About how many tokens the text has."""
        return estimated_tokens(self.text)

    @property
    def open(self) -> bool:
        """True while it still has to go to the model."""
        return not self.taken and not self.future.done()

    @property
    def of_use(self) -> bool:
        """True while one more caller can share its outcome: it has not failed, and nobody gave it up."""
        return not self.future.done() or (not self.future.cancelled() and self.future.exception() is None)

    def leave(self) -> None:
        """Take one caller away; a text that nobody wants any more leaves the queue."""
        self.waiters -= 1
        if self.waiters <= 0 and self.future.cancel() and not self.taken:
            # It stands in the queue for a while yet.
            self.text = ""


@dataclass
class LaneQueue:
    """The texts of one lane and role: those that came, in order, and a window of them sorted by length."""

    lane: Lane
    capacity: Capacity
    came: deque[QueuedText] = field(default_factory=deque)
    window: list[QueuedText] = field(default_factory=list)
    running: int = 0

    def waits(self) -> bool:
        """Forget the first texts that need not go to the model, and return whether any is left."""
        while self.window and not self.window[-1].open:
            self.window.pop()
        while self.came and not self.came[0].open:
            self.came.popleft()
        return bool(self.window or self.came)

    def forget_closed(self) -> None:
        """Let go of texts that need not go to the model, wherever they stand."""
        self.came = deque(item for item in self.came if item.open)
        self.window = [item for item in self.window if item.open]

    def take(self) -> list[QueuedText]:
        """Take the next batch: neighbours by length."""
        batch: list[QueuedText] = []
        tokens, max_texts = 0, math.inf
        while self.waits():
            if not self.window:
                self._fill_window()
            item = self.window[-1]
            max_texts = min(max_texts, item.max_texts)
            if batch and (tokens + item.tokens > self._limit or len(batch) >= max_texts):
                break
            self.window.pop()
            item.taken = True
            tokens += item.tokens
            batch.append(item)
        return batch

    @property
    def _limit(self) -> int:
        """Tokens in a batch: interactive texts go in short ones, unless they are embedded on other cores than ours."""
        short = self.lane == "interactive" and not self.capacity.remote
        return min(self.capacity.tokens, INTERACTIVE_TOKENS) if short else self.capacity.tokens

    def _fill_window(self) -> None:
        count = min(len(self.came), WINDOW[self.lane])
        texts = [item for item in (self.came.popleft() for _ in range(count)) if item.open]
        self.window = sorted(texts, key=lambda item: len(item.text))


class InFlight:
    """Texts that are being embedded, by their cache keys, so that equal ones wait for the same vector.

    A text is here from when it is queued until its vector is in the cache, or nobody wants it.
    """

    def __init__(self) -> None:
        self._items: dict[bytes, QueuedText] = {}

    def of(self, keys: Iterable[bytes]) -> dict[bytes, QueuedText]:
        """Return the texts under these keys that another caller can share."""
        return {key: item for key in keys if (item := self._items.get(key)) and item.of_use}

    def add(self, key: bytes, item: QueuedText) -> None:
        """Share a text; its owner calls `leave_behind` in the end."""
        self._items[key] = item
        item.future.add_done_callback(partial(self._landed, key, item))

    def leave_behind(self, key: bytes, item: QueuedText) -> None:
        """Note that its owner needs it no more: it is in the cache, or others still wait for it."""
        item.left_behind = True
        if item.future.done():
            self._forget(key, item)

    def _landed(self, key: bytes, item: QueuedText, future: asyncio.Future[Cached]) -> None:
        # A vector that is not in the cache as yet is still found here: others need not make it again.
        if item.left_behind or future.cancelled() or future.exception() is not None:
            self._forget(key, item)

    def _forget(self, key: bytes, item: QueuedText) -> None:
        if self._items.get(key) is item:
            del self._items[key]


async def outcomes(items: Mapping[bytes, QueuedText]) -> dict[bytes, Outcome]:
    """Wait for all texts, and return the row or the error of each."""
    if items:
        await asyncio.wait([item.future for item in items.values()])
    return {key: _outcome(item.future) for key, item in items.items()}


def _outcome(future: asyncio.Future[Cached]) -> Outcome:
    error = future.exception()
    if error is None:
        return future.result()
    return error if isinstance(error, LikewiseError) else Internal()


def all_or_faults(keys: Sequence[bytes], made: Mapping[bytes, Outcome]) -> dict[bytes, Cached]:
    """Return all rows by key.

    ModelUnavailable says what kept the model from its work; Invalid (code `text_failed`) has a fault for each place in
    `keys` of a text that it could not embed.
    """
    errors = {key: row for key, row in made.items() if isinstance(row, LikewiseError)}
    for error in errors.values():
        if error.code != "text_failed":
            raise ModelUnavailable.because(error, error.retry_after or 1)
    if errors:
        message = "The model could not embed this text."
        faults = [Fault(f"/texts/{place}", "text_failed", message) for place, key in enumerate(keys) if key in errors]
        raise Invalid(message, code="text_failed", faults=faults)
    return {key: row for key, row in made.items() if isinstance(row, Cached)}
