"""Reranking: a query and texts in, a score of how well each answers it out; and the hits of a search in that order."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from likewise.embedding import models_file
from likewise.embedding.costs import Ledger, cost_of
from likewise.embedding.loading import ModelLoader, ModelPool, ModelState
from likewise.embedding.memory import ModelMemory
from likewise.embedding.models import REMOTE, RERANKERS, ModelSpec, endpoint_of, refuse_known_name
from likewise.embedding.provider import estimated_tokens, refuse_unreadable
from likewise.embedding.queue import QueueBudget
from likewise.embedding.remote.errors import RequestFails, RequestRefused
from likewise.errors import Invalid, ModelFails, ModelNotAllowed, ModelUnavailable, Unavailable
from likewise.observe.logs import get_logger
from likewise.observe.steps import RerankerStep, RerankStep
from likewise.search.hits import HitPage, RecordHit
from likewise.search.plan import SearchPlan, StepTiming, needs_text
from likewise.search.reranker import Reranker, RerankerScores, check
from likewise.search.rerankers import openvino, remote
from likewise.settings import PREFIX, Settings
from likewise.stopping import stop

log = get_logger(__name__)

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


ChargeScores = Callable[[RerankerScores], None]


@dataclass(frozen=True)
class _Part:
    """Places of texts that go to the reranker in one call, and about how many tokens they have."""

    places: list[int]
    tokens: int


# Places, and the scores of the texts there.
_Scored = tuple[list[int], RerankerScores]


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
        made: list[_Scored] = []
        self._budget.take(tokens)
        try:
            await self._all(query, texts, parts, made, charge)
        finally:
            self._budget.give_back(tokens)
        return _in_order(len(texts), made)

    async def close(self) -> None:
        """Fail what waits, and end what runs."""
        self._closed = True
        await stop(self._tasks)

    async def _all(
        self, query: str, texts: Sequence[str], parts: Sequence[_Part], made: list[_Scored], charge: ChargeScores
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
        self, query: str, texts: Sequence[str], left: Iterator[_Part], made: list[_Scored], charge: ChargeScores
    ) -> None:
        for part in left:
            async with self._turns:
                scored = await self._call(query, [texts[place] for place in part.places])
            charge(scored)
            made.append((part.places, scored))

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


def _in_order(count: int, made: Sequence[_Scored]) -> RerankerScores:
    """The scores of n texts, of calls that have each done some places."""
    scores, tokens, truncated = np.zeros(count, np.float32), np.zeros(count, np.int32), np.zeros(count, np.int32)
    for places, scored in made:
        scores[places], tokens[places], truncated[places] = scored.scores, scored.tokens, scored.truncated
    return RerankerScores(scores, tokens, truncated, any(scored.estimated for _, scored in made))


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


@dataclass(frozen=True, kw_only=True)
class RerankResult(RerankerScores):
    """The scores of n texts with their model, and what they cost, in US dollars."""

    cost: float
    model: str


RERANKING: ModelLoader[Reranker, RerankerQueue] = ModelLoader(
    remote.load, openvino.load, lambda folder: [folder / openvino.WEIGHTS], RerankerQueue
)


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
        with RerankStep(spec.name) as step, handle.held():
            _, queue = await handle.ready()
            scored = await queue.score(query, texts, partial(self._charge, tenant, spec))
            step.done(len(texts), int(scored.tokens.sum()))
        self._ledger.answered(tenant, spec.name, len(texts), 0, 0.0)
        cost = cost_of(int(scored.tokens.sum()), spec.price_per_1k_tokens)
        return RerankResult(**vars(scored), cost=cost, model=spec.name)

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
