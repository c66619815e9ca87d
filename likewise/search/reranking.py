"""Reranking: a query and texts in, a score of how well each answers it out; and the hits of a search in that order."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from likewise.embedding import models_file
from likewise.embedding.costs import Ledger, cost_of
from likewise.embedding.loading import ModelLoader, ModelPool, ModelState
from likewise.embedding.memory import ModelMemory
from likewise.embedding.models import REMOTE, RERANKERS, ModelSpec, endpoint_of, refuse_known_name
from likewise.embedding.provider import Counts, Vector, refuse_unreadable
from likewise.embedding.queue import QueueBudget
from likewise.errors import Invalid, ModelNotAllowed, ModelUnavailable
from likewise.observe import steps
from likewise.search.explanation import StepTiming
from likewise.search.hits import HitPage, RecordHit
from likewise.search.plan import SearchPlan, needs_text
from likewise.search.reranker import Reranker, RerankerScores
from likewise.search.rerankers import openvino, remote
from likewise.search.rerankers.folder import WEIGHTS
from likewise.search.rerankers.queue import RerankerQueue
from likewise.settings import PREFIX, Settings

SETTING = f"{PREFIX}RERANKER"
# A caller of a search has not chosen these texts.
CANNOT_SCORE = "The reranker cannot score the texts that were found; search without rerank."


class NoReranker(ModelUnavailable):
    """There is no reranker here."""

    def __init__(self) -> None:
        super().__init__(
            f"There is no reranker here. Set {SETTING}={RERANKERS[0].name} and run `likewise models pull "
            f"{RERANKERS[0].name}`, or name a reranker of {models_file.FILE}.",
            code="reranker_missing",
            retry_after=60,
        )


class RerankerCatalogue:
    """The rerankers that the settings name; SettingsError if the models file is wrong."""

    def __init__(self, settings: Settings) -> None:
        own = [_own_spec(row, settings) for row in models_file.read(settings) if row.kind == "reranker"]
        self.default = None if settings.reranker is None else _find(settings.reranker, own, settings)
        named = [self.default] if self.default else []
        self._specs = list({spec.name: spec for spec in (*named, *own)}.values())

    def specs(self) -> list[ModelSpec]:
        """The rerankers that requests may name, the default first if there is one."""
        return list(self._specs)

    def resolve(self, name: str | None) -> ModelSpec:
        """The reranker of that name, or the default; NoReranker or ModelNotAllowed if there is none."""
        if name is None:
            if self.default is None:
                raise NoReranker
            return self.default
        for spec in self._specs:
            if spec.answers_to(name):
                return spec
        if not self._specs and any(spec.answers_to(name) for spec in RERANKERS):
            # It is one, and could be here.
            raise NoReranker
        raise ModelNotAllowed


@dataclass(frozen=True)
class RerankResult:
    """The scores of n texts, in their order, with what they cost.

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


RERANKING: ModelLoader[Reranker, RerankerQueue] = ModelLoader(remote.load, openvino.load, _weights, RerankerQueue)


class Rerankers:
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
        self._catalogue = RerankerCatalogue(settings)
        self._ledger = ledger
        self._pool: ModelPool[Reranker, RerankerQueue] = ModelPool(
            settings, RERANKING, budget, memory, wait_for_models=wait_for_models
        )

    async def start(self) -> None:
        """Begin to load the settings' reranker in the background; absent weights are no error, they are waited for."""
        if self._catalogue.default is not None:
            self._pool.handle(self._catalogue.default).begin(fetch=True)

    async def close(self) -> None:
        """Fail what waits and let the models go."""
        await self._pool.close()

    async def rerank(self, tenant: int, query: str, texts: Sequence[str], *, model: str | None = None) -> RerankResult:
        """Return a score of how well each text answers a query.

        Raises:
            Invalid: names the texts, or the query, that are blank or longer than 200,000 characters.
            ModelUnavailable, Overloaded: try again later; NoReranker where the settings name none.

        Cancelling is safe at any time.
        """
        spec = self._catalogue.resolve(model)
        _refuse_unreadable(query, texts)
        handle = self._pool.handle(spec)
        with steps.RerankStep(spec.name) as step, handle.held():
            _, queue = await handle.ready()

            def charge(scored: RerankerScores) -> None:
                self._charge(tenant, spec, scored)

            scored = await queue.score(query, texts, charge)
            step.done(len(texts), int(scored.tokens.sum()))
        self._ledger.answered(tenant, spec.name, len(texts), 0, 0.0)
        cost = cost_of(int(scored.tokens.sum()), spec.price_per_1k_tokens)
        return RerankResult(scored.scores, scored.tokens, scored.truncated, cost, spec.name, scored.estimated)

    async def opened(self, model: str | None = None, *, patience: float) -> Reranker:
        """The reranker in service; ModelUnavailable if it cannot be loaded now, or not in so many seconds."""
        reranker, _ = await self._pool.handle(self._catalogue.resolve(model)).ready(patience)
        return reranker

    def known(self, model: str | None = None) -> ModelSpec:
        """Return the facts of a reranker without loading it; NoReranker or ModelNotAllowed if there is none."""
        return self._catalogue.resolve(model)

    def models(self) -> list[ModelSpec]:
        """The rerankers that requests may name, the default first if there is one."""
        return self._catalogue.specs()

    def states(self) -> list[ModelState]:
        """Return the state of each of them."""
        return [self._pool.state(spec) for spec in self._catalogue.specs()]

    def _charge(self, tenant: int, spec: ModelSpec, scored: RerankerScores) -> None:
        """Charge what was read, also where the rest of its request fails."""
        for tokens, truncated in zip(scored.tokens.tolist(), scored.truncated.tolist(), strict=True):
            cost = cost_of(tokens, spec.price_per_1k_tokens)
            self._ledger.generated(tenant, spec.name, tokens, truncated, estimated=scored.estimated, cost=cost)


async def rerank_hits(reranking: Rerankers, plan: SearchPlan, page: HitPage) -> HitPage:
    """Return a page's hits in the order of the reranker's scores; those of equal ones as they were.

    No connection is held meanwhile. Records that share a text share its score.
    """
    started = time.perf_counter()
    hits = [hit for hit in page.hits[: plan.page_size] if isinstance(hit, RecordHit)]
    texts = {hit.record.content: hit.record.text for hit in hits}
    known = {content: text for content, text in texts.items() if text is not None}
    query = page.question.text
    if query is None or len(known) < len(texts):
        raise needs_text()
    if not hits:
        return replace(page, hits=(), timings=())
    try:
        made = await reranking.rerank(plan.tenant, query, list(known.values()))
    except Invalid as error:
        # The places that it names are those of hits, which the caller does not know of.
        code = error.faults[0].code
        words = CANNOT_SCORE if code == "text_failed" else error.detail
        raise Invalid.at("/rerank", words, code) from None
    scores = dict(zip(known, made.scores.tolist(), strict=True))
    scored = [replace(hit, score=scores[hit.record.content]) for hit in hits]
    timing = StepTiming.since(started, "rerank", texts=len(made.scores), model=made.model)
    return replace(page, hits=sorted(scored, key=lambda hit: -hit.score), timings=(timing,))


def _find(name: str, own: list[ModelSpec], settings: Settings) -> ModelSpec:
    """A row of the models file or of the table, or a local folder that the settings name."""
    for spec in (*own, *RERANKERS):
        if spec.answers_to(name):
            return spec
    folder = Path(name).expanduser()
    if not folder.is_absolute():
        folder = folder.absolute() if len(folder.parts) > 1 else settings.models_folder / name
    return ModelSpec(name, name, 1, 0, own=True, folder=folder, runtime="openvino")


def _own_spec(row: models_file.ModelRow, settings: Settings) -> ModelSpec:
    """A row of the models file; SettingsError if its name is another model's."""
    refuse_known_name(row.name)
    if row.folder is not None:
        return ModelSpec(row.name, row.name, 1, 0, own=True, folder=row.folder, runtime="openvino")
    return ModelSpec(
        row.name, row.name, 1, row.max_tokens, architecture=REMOTE, own=True, endpoint=endpoint_of(row, settings),
        price_per_1k_tokens=row.price_per_1k_tokens,
    )  # fmt: skip


def _refuse_unreadable(query: str, texts: Sequence[str]) -> None:
    try:
        refuse_unreadable([query])
    except Invalid as error:
        raise Invalid.at("/query", error.detail, error.faults[0].code) from None
    refuse_unreadable(texts)
