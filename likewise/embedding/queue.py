"""Texts that wait for a model: how many there may be, and in which order they go."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field

from likewise.embedding.cache import Cached
from likewise.embedding.provider import Capacity, Lane, Role
from likewise.errors import Overloaded

CHARS_PER_TOKEN = 4  # English prose and WordPiece; an estimate is enough to bound a queue
INTERACTIVE_TOKENS = 4_096  # in one call: 0.1 s of a small model, and the next interactive text waits for it
WINDOW = {"interactive": 256, "bulk": 1_024}  # texts sorted by length at a time; whoever comes later waits for them


class QueueBudget:
    """Tokens that may wait in one process, over all models."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def take(self, tokens: int) -> None:
        """Hold so many, or Overloaded; who comes to an empty queue is never refused."""
        if self._held and self._held + tokens > self._limit:
            raise Overloaded(
                "Too many texts wait for the model; send this again later.", retry_after=self._retry_after()
            )
        self._held += tokens

    def give_back(self, tokens: int) -> None:
        """Hold so many less."""
        self._held -= tokens

    def _retry_after(self) -> int:
        return max(1, min(60, math.ceil(self._held / 20_000)))  # tokens a second on two cores


Charge = Callable[[Cached], None]


@dataclass(eq=False)
class Waiting:
    """One text on its way through the model, and how many callers want it.

    `most` is how many texts may be in its batch; `charge` is told what a model made of it. It is `left_behind` once who
    brought it waits no more.
    """

    text: str
    role: Role
    lane: Lane
    future: asyncio.Future[Cached]
    # Whose request it is, for log lines and spans: a batch begins when another ends, which may be anybody's.
    context: Context
    most: int
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
        """Whether it still has to go to the model."""
        return not self.taken and not self.future.done()

    @property
    def of_use(self) -> bool:
        """Whether one more caller may have what becomes of it: it has not failed, and nobody gave it up."""
        return not self.future.done() or (not self.future.cancelled() and self.future.exception() is None)

    def leave(self) -> None:
        """One caller less; a text that nobody wants any more leaves the queue."""
        self.waiters -= 1
        if self.waiters <= 0 and self.future.cancel() and not self.taken:
            # It stands in the queue for a while yet.
            self.text = ""


@dataclass
class Queue:
    """The texts of one lane and role: those that came, in order, and a window of them sorted by length."""

    lane: Lane
    capacity: Capacity
    came: deque[Waiting] = field(default_factory=deque)
    window: list[Waiting] = field(default_factory=list)
    running: int = 0

    def waits(self) -> bool:
        """Whether any text still has to go to the model; forgets those that need not."""
        while self.window and not self.window[-1].open:
            self.window.pop()
        while self.came and not self.came[0].open:
            self.came.popleft()
        return bool(self.window or self.came)

    def forget_closed(self) -> None:
        """Let go of those that need not go to the model, wherever they stand."""
        self.came = deque(item for item in self.came if item.open)
        self.window = [item for item in self.window if item.open]

    def take(self) -> list[Waiting]:
        """The next batch: neighbours by length."""
        batch: list[Waiting] = []
        tokens, most = 0, math.inf
        while self.waits():
            if not self.window:
                self._fill_window()
            item = self.window[-1]
            most = min(most, item.most)
            if batch and (tokens + item.tokens > self._limit or len(batch) >= most):
                break
            self.window.pop()
            item.taken = True
            tokens += item.tokens
            batch.append(item)
        return batch

    @property
    def _limit(self) -> int:
        """Tokens in a batch. What is interactive goes in short ones, unless they are done on other cores than ours."""
        short = self.lane == "interactive" and not self.capacity.remote
        return min(self.capacity.tokens, INTERACTIVE_TOKENS) if short else self.capacity.tokens

    def _fill_window(self) -> None:
        count = min(len(self.came), WINDOW[self.lane])
        texts = [item for item in (self.came.popleft() for _ in range(count)) if item.open]
        self.window = sorted(texts, key=lambda item: len(item.text))


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, without a tokenizer."""
    return len(text) // CHARS_PER_TOKEN + 1
