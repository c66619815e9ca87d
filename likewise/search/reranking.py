"""Reranking: a query and texts in, how well each answers it out."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from likewise.embedding.costs import Ledger, cost_of
from likewise.embedding.files import weights
from likewise.embedding.loading import Making, ModelState, Slot
from likewise.embedding.memory import ModelMemory
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Counts, Vector
from likewise.embedding.queue import QueueBudget
from likewise.embedding.texts import refuse_unreadable
from likewise.errors import Invalid
from likewise.observe import steps
from likewise.search.reranker import Reranker, Scored
from likewise.search.reranker_models import RerankerCatalogue
from likewise.search.rerankers import openvino, remote
from likewise.search.rerankers.folder import WEIGHTS
from likewise.search.rerankers.queue import RerankerQueue
from likewise.settings import Settings


@dataclass(frozen=True)
class Reranked:
    """What became of n texts, in their order.

    `scores` float32 (n,) of 0 to 1; `tokens` read of query and text together and `truncated` tokens cut off int32 (n,);
    `cost` in US dollars. `estimated`: nobody counted the tokens.
    """

    scores: Vector
    tokens: Counts
    truncated: Counts
    cost: float
    model: str
    estimated: bool


def _weights(folder: Path) -> list[Path]:
    return [folder / WEIGHTS]


MAKING: Making[Reranker, RerankerQueue] = Making(remote.load, openvino.load, _weights, RerankerQueue)


class Reranking:
    """The rerankers of one process: they share its queue and its memory for models with the embedder.

    Belongs to one event loop.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        budget: QueueBudget,
        memory: ModelMemory,
        *,
        wait_for_models: bool = False,
    ) -> None:
        self._settings = settings
        self._wait_for_models = wait_for_models
        self._catalogue = RerankerCatalogue(settings)
        self._ledger = ledger
        self._budget = budget
        self._memory = memory
        self._slots: dict[str, Slot[Reranker, RerankerQueue]] = {}

    async def start(self) -> None:
        """Begin to load the settings' reranker in the background; absent weights are no error, they are waited for."""
        if self._catalogue.default is not None:
            self._slot(self._catalogue.default).begin(fetch=True)

    async def close(self) -> None:
        """Fail what waits and let the models go."""
        await asyncio.gather(*(slot.close() for slot in self._slots.values()))

    async def rerank(self, tenant: int, query: str, texts: Sequence[str], *, model: str | None = None) -> Reranked:
        """How well each text answers a query.

        Raises:
            Invalid: names the texts, or the query, that are blank or longer than 200,000 characters.
            ModelUnavailable, Overloaded: try again later; NoReranker where the settings name none.

        Cancelling is safe at any time.
        """
        spec = self._catalogue.resolve(model)
        _refuse_unreadable(query, texts)
        slot = self._slot(spec)
        with steps.RerankStep(spec.name) as step, slot.held():
            _, queue = await slot.ready()

            def charge(scored: Scored) -> None:
                self._charge(tenant, spec, scored)

            scored = await queue.score(query, texts, charge)
            step.done(len(texts), int(scored.tokens.sum()))
        self._ledger.answered(tenant, spec.name, len(texts), 0, 0.0)
        cost = cost_of(int(scored.tokens.sum()), spec.price_per_1k_tokens)
        return Reranked(scored.scores, scored.tokens, scored.truncated, cost, spec.name, scored.estimated)

    async def opened(self, model: str | None = None, *, patience: float) -> Reranker:
        """The reranker in service; ModelUnavailable if it cannot be loaded now, or not in so many seconds."""
        reranker, _ = await self._slot(self._catalogue.resolve(model)).ready(patience)
        return reranker

    def known(self, model: str | None = None) -> ModelSpec:
        """What is known of a reranker without loading it; NoReranker or ModelNotAllowed if there is none."""
        return self._catalogue.resolve(model)

    def models(self) -> list[ModelSpec]:
        """The rerankers that requests may name, the default first if there is one."""
        return self._catalogue.specs()

    def states(self) -> list[ModelState]:
        """How it stands with each of them."""
        return [self._state(spec) for spec in self._catalogue.specs()]

    def _slot(self, spec: ModelSpec) -> Slot[Reranker, RerankerQueue]:
        if spec.name not in self._slots:
            self._slots[spec.name] = Slot(
                spec, self._settings, self._budget, self._memory, MAKING, wait_for_models=self._wait_for_models
            )
        return self._slots[spec.name]

    def _state(self, spec: ModelSpec) -> ModelState:
        if spec.name in self._slots:
            return self._slots[spec.name].state
        if spec.endpoint or weights.locate(spec, self._settings):
            return ModelState(spec.name, "present")
        return ModelState(spec.name, "absent", weights.absent(spec, self._settings).detail)

    def _charge(self, tenant: int, spec: ModelSpec, scored: Scored) -> None:
        """What was read is paid for, also where the rest of its request fails."""
        for tokens, truncated in zip(scored.tokens.tolist(), scored.truncated.tolist(), strict=True):
            cost = cost_of(tokens, spec.price_per_1k_tokens)
            self._ledger.generated(tenant, spec.name, tokens, truncated, estimated=scored.estimated, cost=cost)


def _refuse_unreadable(query: str, texts: Sequence[str]) -> None:
    try:
        refuse_unreadable([query])
    except Invalid as error:
        raise Invalid.at("/query", error.detail, error.faults[0].code) from None
    refuse_unreadable(texts)
