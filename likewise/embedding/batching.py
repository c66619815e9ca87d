"""Texts of many callers to batches of one model, in two lanes."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from likewise.embedding.cache import Cached
from likewise.embedding.provider import Capacity, Lane, Provider, ProviderResult, Role
from likewise.errors import Internal, LikewiseError, ModelUnavailable, Overloaded, Unavailable
from likewise.observe.steps import ModelBatch

log = logging.getLogger(__name__)

CHARS_PER_TOKEN = 4  # English prose and WordPiece; an estimate is enough to bound a queue
INTERACTIVE_TOKENS = 4_096  # in one call: 0.1 s of a small model, and the next interactive text waits for it
WINDOW = {"interactive": 256, "bulk": 1_024}  # texts sorted by length at a time; whoever comes later waits for them
INTERACTIVE_RUN = 64  # interactive batches in a row after which a bulk one goes, so that bulk never stands still
NORM_TOLERANCE = 1e-3
# So many texts that nobody wants any more may stand in the queues before these are gone through.
GIVEN_UP = 1_024
_HEALTH_TEXT = "The quick brown fox jumps over the lazy dog."


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
class _Queue:
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
        tokens, most = 0, self.capacity.texts
        while self.waits():
            if not self.window:
                self._fill_window()
            item = self.window[-1]
            if batch and (tokens + item.tokens > self._limit or len(batch) >= min(most, item.most)):
                break
            self.window.pop()
            item.taken = True
            tokens += item.tokens
            most = item.most if not batch else min(most, item.most)
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


class Batcher:
    """Feeds one provider.

    On our own cores a bulk batch starts only while nothing interactive waits or runs, or after many of those.
    """

    def __init__(self, provider: Provider, budget: QueueBudget, model: str = "unnamed") -> None:
        self._provider = provider
        self._capacity = provider.capacity
        self._model = model
        self._budget = budget
        self._queues: dict[tuple[Lane, Role], _Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._interactive_run = 0
        self._given_up = 0
        self._closed = False

    def submit(
        self,
        texts: Sequence[str],
        role: Role,
        lane: Lane,
        *,
        most: int | None = None,
        charge: Charge | None = None,
    ) -> list[Waiting]:
        """Queue texts, all or none; Overloaded if they do not fit.

        Args:
            most: how many of them may go to a remote model in one call.
            charge: told, of each text, what a model made of it, whether anybody still waits for it or not.
        """
        if self._closed:
            raise ModelUnavailable("The model is shutting down.")
        tokens = sum(map(estimated_tokens, texts))
        self._budget.take(tokens)
        loop = asyncio.get_running_loop()
        context = copy_context()
        most = most if most and self._capacity.remote else self._capacity.texts
        items = [Waiting(text, role, lane, loop.create_future(), context, most, charge) for text in texts]
        for item in items:
            item.future.add_done_callback(partial(self._done, item.tokens))
        self._queue(lane, role).came.extend(items)
        loop.call_soon(self._start_batches)
        return items

    def promote(self, item: Waiting) -> None:
        """Let a text of the bulk lane go with the interactive ones, as somebody interactive wants it too."""
        if item.lane == "bulk" and item.open:
            item.lane = "interactive"
            self._queue("interactive", item.role).came.append(item)
            asyncio.get_running_loop().call_soon(self._start_batches)

    @property
    def busy(self) -> bool:
        """Whether any text waits or is in the model."""
        return bool(self._tasks) or any(queue.waits() for queue in self._queues.values())

    async def close(self) -> None:
        """Fail what waits, and end what runs."""
        self._closed = True
        for queue in self._queues.values():
            _fail([*queue.came, *queue.window], ModelUnavailable("The model is shutting down."))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, tokens: int, future: asyncio.Future[Cached]) -> None:
        self._budget.give_back(tokens)
        self._given_up += future.cancelled()
        if self._given_up >= GIVEN_UP:
            self._given_up = 0
            for queue in self._queues.values():
                queue.forget_closed()

    def _queue(self, lane: Lane, role: Role) -> _Queue:
        return self._queues.setdefault((lane, role), _Queue(lane, self._capacity))

    def _start_batches(self) -> None:
        bulk_turn = self._interactive_run >= INTERACTIVE_RUN and self._next("bulk") is not None
        while not bulk_turn and (queue := self._next("interactive")):
            self._interactive_run += 1
            self._start(queue)
        while (bulk_turn or self._bulk_may_go()) and (queue := self._next("bulk")):
            bulk_turn = False
            self._interactive_run = 0
            self._start(queue)

    def _next(self, lane: Lane) -> _Queue | None:
        """A queue of that lane from which one more batch may start."""
        return next((queue for queue in self._of(lane) if self._has_place(queue) and queue.waits()), None)

    def _has_place(self, queue: _Queue) -> bool:
        # Elsewhere all calls share the places there are; here each queue has its own.
        running = self._running() if self._capacity.remote else queue.running
        return running < self._capacity.calls

    def _bulk_may_go(self) -> bool:
        """Elsewhere while a place is left for what is short; here while nothing short waits or runs."""
        if self._capacity.remote:
            return self._running() < max(1, self._capacity.calls - 1)
        return self._idle("interactive")

    def _running(self) -> int:
        return sum(queue.running for queue in self._queues.values())

    def _idle(self, lane: Lane) -> bool:
        return not any(queue.running or queue.waits() for queue in self._of(lane))

    def _of(self, lane: Lane) -> list[_Queue]:
        return [queue for queue in self._queues.values() if queue.lane == lane]

    def _start(self, queue: _Queue) -> None:
        queue.running += 1
        batch = queue.take()
        task = asyncio.create_task(self._run(queue, batch), context=batch[0].context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, queue: _Queue, batch: list[Waiting]) -> None:
        try:
            await self._embed(batch)
        finally:
            _fail(batch, ModelUnavailable("The model is shutting down."))  # none is left unless we were cancelled
            queue.running -= 1
            if not self._closed:
                self._start_batches()

    async def _embed(self, batch: list[Waiting]) -> None:
        try:
            await self._call_or_split(batch)
        except TimeoutError:
            # A model that hangs is no text's fault, and each further try would take as long.
            _fail(batch, ModelUnavailable("The model does not answer.", code="model_hangs"))

    async def _call_or_split(self, batch: list[Waiting]) -> None:
        try:
            await self._call(batch)
        except TimeoutError:
            raise
        except Unavailable as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - a provider may raise anything
            # only the type: the message may repeat a text
            log.warning("the model failed on a batch of %d: %s", len(batch), type(error).__name__)
            await self._split_if_healthy(batch)

    async def _split_if_healthy(self, batch: list[Waiting]) -> None:
        try:
            healthy = await self._healthy()
        except Unavailable as away:
            _fail(batch, away)
            return
        if healthy:
            await self._split(batch)
        else:
            _fail(batch, ModelUnavailable("The model fails on every text; see the log.", code="model_failed"))

    async def _call(self, batch: list[Waiting]) -> None:
        with ModelBatch(self._model, batch[0].lane) as step:
            async with asyncio.timeout(self._capacity.seconds):
                result = await self._provider.embed([item.text for item in batch], batch[0].role)
            check(result, len(batch), self._provider.dimension)
            step.done(len(batch), result.tokens, result.truncated)
        for item, row in zip(batch, _rows(result), strict=True):
            if item.charge is not None:
                item.charge(row)
            if not item.future.done():
                item.future.set_result(row)

    async def _healthy(self) -> bool:
        """Whether the model can do a plain text, so that the fault is one text's own; Unavailable if it is away."""
        try:
            async with asyncio.timeout(self._capacity.seconds):
                check(await self._provider.embed([_HEALTH_TEXT], "document"), 1, self._provider.dimension)
        except Unavailable:
            raise
        except Exception:  # noqa: BLE001 - any failure is the answer
            return False
        return True

    async def _split(self, batch: list[Waiting]) -> None:
        """Embed the halves of a batch that failed, until the text that fails stands alone; TimeoutError ends it."""
        if len(batch) == 1:
            _fail(batch, Internal("The model could not embed this text.", code="text_failed"))
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            try:
                await self._call(half)
            except Unavailable as error:
                _fail(half, error)
            except TimeoutError:
                raise
            except Exception:  # noqa: BLE001 - a provider may raise anything
                await self._split(half)


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, without a tokenizer."""
    return len(text) // CHARS_PER_TOKEN + 1


def check(result: ProviderResult, count: int, dimension: int) -> None:
    """ValueError unless there are so many finite vectors of unit length, and so many of each count."""
    vectors = np.asarray(result.vectors)
    if vectors.shape != (count, dimension):
        raise ValueError("wrong shape")
    if any(len(numbers) != count for numbers in (result.tokens, result.truncated, result.chars_read)):
        raise ValueError("wrong number of counts")
    norms = np.linalg.norm(vectors, axis=1)
    if not np.all(np.abs(norms - 1) <= NORM_TOLERANCE):  # NaN and infinity fail this too
        raise ValueError("not of unit length")


def _rows(result: ProviderResult) -> list[Cached]:
    vectors = np.asarray(result.vectors, np.float32)
    return [
        # a copy, so that keeping one vector does not keep its whole batch
        Cached(vector.copy(), int(tokens), int(truncated), int(chars), result.estimated)
        for vector, tokens, truncated, chars in zip(
            vectors, result.tokens, result.truncated, result.chars_read, strict=True
        )
    ]


def _fail(batch: Sequence[Waiting], error: LikewiseError) -> None:
    for item in batch:
        if not item.future.done():
            item.future.set_exception(error)
