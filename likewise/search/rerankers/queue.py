"""Texts that wait for a reranker: how many there may be, and in which order they go."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from likewise.embedding.provider import estimated_tokens
from likewise.embedding.queue import QueueBudget
from likewise.embedding.remote.errors import RequestFails, RequestRefused
from likewise.errors import Invalid, ModelFails, ModelUnavailable, Unavailable
from likewise.observe.logs import get_logger
from likewise.observe.steps import RerankerStep
from likewise.search.reranker import Reranker, RerankerScores, check
from likewise.stopping import stop

log = get_logger(__name__)

ChargeScores = Callable[[RerankerScores], None]


@dataclass(frozen=True)
class _Part:
    """Places of texts that go to the reranker in one call, and about how many tokens they have."""

    places: Sequence[int]
    tokens: int


class RerankerQueue:
    """Shares one reranker out.

    A request goes in calls of some thousand tokens, which take turns with those of others: so a search waits for no
    more than one call of each request before it, however long that is.
    """

    def __init__(self, reranker: Reranker, budget: QueueBudget, model: str) -> None:
        self._reranker = reranker
        self._budget = budget
        self._model = model
        self._turns = asyncio.Semaphore(reranker.capacity.calls)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def busy(self) -> bool:
        """True if any text waits or is in the model."""
        return bool(self._tasks)

    async def score(self, query: str, texts: Sequence[str], charge: ChargeScores) -> RerankerScores:
        """The scores of texts in their order. Cancelling is safe at any time: what still waits is not done.

        Args:
            charge: called with each call that was done, also where a later one fails.

        Raises:
            Overloaded: they do not fit in what may wait.
            ModelUnavailable: the reranker is away, or does not do its work.
            Invalid: it refuses the texts.
        """
        if self._closed:
            raise _closing()
        parts = _parts(self._reranker, query, texts)
        tokens = sum(part.tokens for part in parts)
        made = _Made(len(texts))
        self._budget.take(tokens)
        try:
            await self._all(query, texts, parts, made, charge)
        finally:
            self._budget.give_back(tokens)
        return made.whole()

    async def close(self) -> None:
        """Fail what waits, and end what runs."""
        self._closed = True
        await stop(self._tasks)

    async def _all(
        self, query: str, texts: Sequence[str], parts: Sequence[_Part], made: "_Made", charge: ChargeScores
    ) -> None:
        """All calls, as many at a time as the reranker takes; the first that fails ends the others."""
        left = iter(parts)
        count = min(self._reranker.capacity.calls, len(parts))
        tasks = [asyncio.create_task(self._some(query, texts, left, made, charge)) for _ in range(count)]
        self._tasks.update(tasks)
        try:
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is None or caller.cancelling():
                raise
            # Nobody but `close` ends the calls of a caller who waits.
            raise _closing() from None
        finally:
            await stop(tasks)
            self._tasks.difference_update(tasks)

    async def _some(
        self, query: str, texts: Sequence[str], left: Iterator[_Part], made: "_Made", charge: ChargeScores
    ) -> None:
        for part in left:
            async with self._turns:
                scored = await self._call(query, [texts[place] for place in part.places])
            charge(scored)
            made.take(part.places, scored)

    async def _call(self, query: str, texts: Sequence[str]) -> RerankerScores:
        with RerankerStep(self._model) as step:
            try:
                async with asyncio.timeout(self._reranker.capacity.seconds):
                    scored = await self._reranker.score(query, texts)
                check(scored, len(texts))
            except TimeoutError:
                raise ModelUnavailable("The reranker does not answer.", code="model_hangs") from None
            except Unavailable:
                raise
            except RequestRefused as refused:
                log.warning("reranker_refused", model=self._model, texts=len(texts), reason=str(refused))
                if isinstance(refused, RequestFails):
                    # Nobody knows that it is the texts' fault.
                    raise _failing() from None
                words = "The reranker refuses this; send fewer or shorter texts."
                raise Invalid.at("", words, "text_failed") from None
            except Exception as error:  # noqa: BLE001 - a reranker may raise anything
                log.warning("reranker_failed", model=self._model, texts=len(texts), error=error)
                raise _failing() from None
            step.done(len(texts), scored.tokens, scored.truncated)
            return scored


class _Made:
    """The scores of n texts, as far as they have come."""

    def __init__(self, count: int) -> None:
        self._scores = np.zeros(count, np.float32)
        self._tokens = np.zeros(count, np.int32)
        self._truncated = np.zeros(count, np.int32)
        self._estimated = False

    def take(self, places: Sequence[int], scored: RerankerScores) -> None:
        """The texts at these places are done."""
        chosen = list(places)
        self._scores[chosen] = scored.scores
        self._tokens[chosen] = scored.tokens
        self._truncated[chosen] = scored.truncated
        self._estimated = self._estimated or scored.estimated

    def whole(self) -> RerankerScores:
        """All of it."""
        return RerankerScores(self._scores, self._tokens, self._truncated, self._estimated)


def _parts(reranker: Reranker, query: str, texts: Sequence[str]) -> list[_Part]:
    """Texts of similar length in calls of about as many tokens as the reranker likes."""
    capacity, asked = reranker.capacity, estimated_tokens(query)
    most = reranker.max_tokens or capacity.tokens
    parts: list[_Part] = []
    places: list[int] = []
    held = 0
    for place in sorted(range(len(texts)), key=lambda place: len(texts[place])):
        tokens = min(asked + estimated_tokens(texts[place]), most)
        if places and (held + tokens > capacity.tokens or len(places) >= capacity.texts):
            parts.append(_Part(places, held))
            places, held = [], 0
        places.append(place)
        held += tokens
    return [*parts, _Part(places, held)] if places else parts


def _failing() -> ModelFails:
    return ModelFails("The reranker fails; see the log.")


def _closing() -> ModelUnavailable:
    return ModelUnavailable("The model is shutting down.")
