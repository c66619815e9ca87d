"""Batches of one model, made of the texts of many callers in two lanes."""

import asyncio
from collections.abc import Sequence
from contextvars import copy_context
from functools import partial

import numpy as np

from likewise.embedding.cache import Cached
from likewise.embedding.provider import Lane, Provider, ProviderResult, Role, estimated_tokens
from likewise.embedding.queue import Charge, LaneQueue, QueueBudget, QueuedText
from likewise.errors import Internal, LikewiseError, ModelUnavailable, Unavailable
from likewise.observe.logs import get_logger
from likewise.observe.steps import ModelStep

log = get_logger(__name__)

INTERACTIVE_RUN = 64  # interactive batches in a row after which a bulk one goes, so that bulk never stands still
NORM_TOLERANCE = 1e-3
# Texts that nobody wants any more may stand in the queues until there are so many.
MAX_GIVEN_UP = 1_024
_HEALTH_TEXT = "The quick brown fox jumps over the lazy dog."


class Batcher:
    """The dispatcher of one provider.

    On our own cores a bulk batch starts only while nothing interactive waits or runs, or after many of those.
    """

    def __init__(self, provider: Provider, budget: QueueBudget, model: str = "unnamed") -> None:
        self._provider = provider
        self._capacity = provider.capacity
        self._model = model
        self._budget = budget
        self._queues: dict[tuple[Lane, Role], LaneQueue] = {}
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
        max_texts: int | None = None,
        charge: Charge | None = None,
    ) -> list[QueuedText]:
        """Queue texts, all or none; Overloaded if they do not fit.

        Args:
            max_texts: the most of them that go to a remote model in one call.
            charge: called with what the model made of each text, also where nobody waits for it any more.
        """
        if self._closed:
            raise ModelUnavailable("The model is shutting down.")
        tokens = sum(map(estimated_tokens, texts))
        self._budget.take(tokens)
        loop = asyncio.get_running_loop()
        context = copy_context()
        max_texts = max_texts if max_texts and self._capacity.remote else self._capacity.texts
        items = [QueuedText(text, role, lane, loop.create_future(), context, max_texts, charge) for text in texts]
        for item in items:
            item.future.add_done_callback(partial(self._done, item.tokens))
        self._queue(lane, role).came.extend(items)
        loop.call_soon(self._start_batches)
        return items

    def promote(self, item: QueuedText) -> None:
        """Let a text of the bulk lane go with the interactive ones, as somebody interactive wants it too."""
        if item.lane == "bulk" and item.open:
            item.lane = "interactive"
            self._queue("interactive", item.role).came.append(item)
            asyncio.get_running_loop().call_soon(self._start_batches)

    @property
    def busy(self) -> bool:
        """True while any text waits or is in the model."""
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
        if self._given_up >= MAX_GIVEN_UP:
            self._given_up = 0
            for queue in self._queues.values():
                queue.forget_closed()

    def _queue(self, lane: Lane, role: Role) -> LaneQueue:
        return self._queues.setdefault((lane, role), LaneQueue(lane, self._capacity))

    def _start_batches(self) -> None:
        bulk_turn = self._interactive_run >= INTERACTIVE_RUN and self._next("bulk") is not None
        while not bulk_turn and (queue := self._next("interactive")):
            self._interactive_run += 1
            self._start(queue)
        while (bulk_turn or self._bulk_may_go()) and (queue := self._next("bulk")):
            bulk_turn = False
            self._interactive_run = 0
            self._start(queue)

    def _next(self, lane: Lane) -> LaneQueue | None:
        """Return a queue of that lane from which one more batch may start."""
        return next((queue for queue in self._in_lane(lane) if self._has_permit(queue) and queue.waits()), None)

    def _has_permit(self, queue: LaneQueue) -> bool:
        # Elsewhere all calls share the permits; here each queue has its own.
        running = self._running() if self._capacity.remote else queue.running
        return running < self._capacity.calls

    def _bulk_may_go(self) -> bool:
        """Return whether bulk may start: elsewhere if a permit is left for short texts, here if none wait or run."""
        if self._capacity.remote:
            return self._running() < max(1, self._capacity.calls - 1)
        return self._idle("interactive")

    def _running(self) -> int:
        return sum(queue.running for queue in self._queues.values())

    def _idle(self, lane: Lane) -> bool:
        return not any(queue.running or queue.waits() for queue in self._in_lane(lane))

    def _in_lane(self, lane: Lane) -> list[LaneQueue]:
        return [queue for queue in self._queues.values() if queue.lane == lane]

    def _start(self, queue: LaneQueue) -> None:
        queue.running += 1
        batch = queue.take()
        task = asyncio.create_task(self._run(queue, batch), context=batch[0].context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, queue: LaneQueue, batch: list[QueuedText]) -> None:
        try:
            await self._embed(batch)
        finally:
            _fail(batch, ModelUnavailable("The model is shutting down."))  # none is left unless we were cancelled
            queue.running -= 1
            if not self._closed:
                self._start_batches()

    async def _embed(self, batch: list[QueuedText]) -> None:
        """Embed a batch, in parts if one of its texts may be at fault; a failure reaches those texts alone."""
        try:
            try:
                await self._call(batch)
            except (TimeoutError, Unavailable):
                raise
            except Exception as error:  # noqa: BLE001 - a provider may raise anything
                # only the type: the message may repeat a text
                log.warning("model_batch_failed", texts=len(batch), error=error)
                if not await self._healthy():
                    raise ModelUnavailable("The model fails on every text; see the log.", code="model_failed") from None
                await self._split(batch)
        except TimeoutError:
            # A model that hangs is no text's fault, and each further try would take as long.
            _fail(batch, ModelUnavailable("The model does not answer.", code="model_hangs"))
        except Unavailable as error:
            _fail(batch, error)

    async def _call(self, batch: list[QueuedText]) -> None:
        with ModelStep(self._model, batch[0].lane) as step:
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
        """Return whether the model can do a plain text, so that a text is at fault; Unavailable if it is away."""
        try:
            async with asyncio.timeout(self._capacity.seconds):
                check(await self._provider.embed([_HEALTH_TEXT], "document"), 1, self._provider.dimension)
        except Unavailable:
            raise
        except Exception:  # noqa: BLE001 - any failure is the answer
            return False
        return True

    async def _split(self, batch: list[QueuedText]) -> None:
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


def check(result: ProviderResult, count: int, dimension: int) -> None:
    """Raise ValueError unless there are so many finite vectors of unit length, and so many of each count."""
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


def _fail(batch: Sequence[QueuedText], error: LikewiseError) -> None:
    for item in batch:
        if not item.future.done():
            item.future.set_exception(error)
