"""Several views of one search, fused by record: a content of each expands to its records, and their scores add up."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from likewise.db import lookups
from likewise.db.lookups import RecordQuery
from likewise.db.transaction import Tx
from likewise.db.where import exactly
from likewise.errors import NotFound
from likewise.search.candidates import CandidateSets
from likewise.search.fusion import best_first, scaled
from likewise.search.hits import CHUNK, HitPage, RecordHit
from likewise.search.plan import SearchPlan, StepTiming
from likewise.search.question import Embedding, Question, QuestionResolver
from likewise.search.ranking import Rankings, ViewSearch

# A content expands to so many records at most, the newest: a text may have a million.
MAX_RECORDS = 200


@dataclass(frozen=True)
class RecordRanking:
    """Records in the order of their scores; `contents` has of each record what it was found by, in which view.

    `is_cut` says that a content had more records than were looked at.
    """

    order: Sequence[tuple[int, float]] = ()
    contents: Mapping[int, Sequence[tuple[ViewSearch, int]]] = field(default_factory=dict)
    is_cut: bool = False
    timings: tuple[StepTiming, ...] = ()

    def found_by(self, record: int) -> tuple[str, ...]:
        """Return the names of the legs that found a record, in any view."""
        found = self.contents.get(record, ())
        return tuple(sorted({name for view, content in found for name in view.ranking.found_by(content)}))

    def words(self, plan: SearchPlan, record: int) -> float | None:
        """Return the score of a record's words in the view of a plan; None where they did not find it."""
        for view, content in self.contents.get(record, ()):
            if view.plan is plan:
                return view.ranking.lexical_score(content)
        return None


class ViewFusion:
    """Finds records by several views at once."""

    def __init__(self, questions: QuestionResolver, candidates: CandidateSets, rankings: Rankings) -> None:
        self._questions = questions
        self._candidates = candidates
        self._rankings = rankings

    async def find(
        self, tx: Tx, plan: SearchPlan, embeddings: Sequence[Embedding | None]
    ) -> tuple[HitPage, list[StepTiming]]:
        """Return a page of hits: views are ranked ever deeper until there are enough or no others."""
        views = await self._begin(tx, plan, embeddings)
        page, records = HitPage(plan, views[0].question, plan.tree), RecordRanking()
        timings = [view.candidates.timing for view in views]
        while not page.done:
            views = [view if view.ranking.is_last else await self._rankings.deeper(tx, view) for view in views]
            records = await _fused(tx, views, records)
            hits, timing = await _load(tx, plan, views[0].question, records)
            timings += [*(one for view in views for one in view.ranking.timings), *records.timings, timing]
            done = len(hits) > plan.page_size or all(view.ranking.is_last for view in views)
            page = replace(page, hits=hits, done=done, degraded=("records",) if records.is_cut else ())
        return page, timings

    async def _begin(self, tx: Tx, plan: SearchPlan, embeddings: Sequence[Embedding | None]) -> list[ViewSearch]:
        """The views to search; one beside the plan's own in which the record in question has nothing is left out."""
        views = []
        for one, embedding in zip((plan, *plan.others), embeddings, strict=True):
            try:
                question = await self._questions.resolve(tx, one, embedding)
            except NotFound as error:
                if one is plan or error.code != "record_not_in_view":
                    raise
                continue
            views.append(ViewSearch(one, question, await self._candidates.of(tx, one, one.tree)))
        return views


async def _fused(tx: Tx, views: Sequence[ViewSearch], before: RecordRanking) -> RecordRanking:
    """The records of all that the views rank, by the mean of their scores; what came before stays before."""
    started, is_cut = time.perf_counter(), False
    scores: dict[int, float] = {}
    contents: dict[int, list[tuple[ViewSearch, int]]] = {}
    for view in views:
        of_content = _scores(view)
        where = exactly(view.plan.tree, view.plan.collection.id, view.plan.view.number)
        found = await lookups.expand(tx, list(of_content), where, limit=MAX_RECORDS + 1, without=view.question.without)
        counts: dict[int, int] = {}
        for content, record in found:
            counts[content] = counts.get(content, 0) + 1
            if counts[content] > MAX_RECORDS:
                is_cut = True
                continue
            scores[record] = scores.get(record, 0.0) + of_content[content] / len(views)
            contents.setdefault(record, []).append((view, content))
    seen = {record for record, _ in before.order}
    fresh = sorted(((record, score) for record, score in scores.items() if record not in seen), key=best_first)
    timing = StepTiming.since(started, "fuse", records=len(scores), cut=is_cut)
    return RecordRanking([*before.order, *fresh], contents, is_cut, (timing,))


async def _load(
    tx: Tx, plan: SearchPlan, question: Question, records: RecordRanking
) -> tuple[list[RecordHit], StepTiming]:
    """The page's hits and one more, which tells of the next; similarities are those of the plan's own view."""
    started, hits = time.perf_counter(), list[RecordHit]()
    where = exactly(plan.tree, plan.collection.id, plan.view.number)
    generation, threshold = plan.view.generation, plan.options.threshold
    near = None if generation is None else await question.vector()
    query = RecordQuery(None, similar_to=near, compared=None if generation is None else generation.id)
    wanted, passed = plan.page_size + 1, plan.request.offset
    order = records.order if threshold is not None else records.order[passed : passed + wanted]
    scores = dict(order)
    for at in range(0, len(order), CHUNK):
        pks = [record for record, _ in order[at : at + CHUNK]]
        for one, _, similarity in await lookups.of_records(tx, plan.collection.active.id, pks, where, query):
            if threshold is None or (similarity is not None and similarity >= threshold):
                words, found_by = records.words(plan, one.pk), records.found_by(one.pk)
                hits.append(RecordHit(scores[one.pk], similarity, words, found_by, one))
    hits = hits[passed : passed + wanted] if threshold is not None else hits
    return hits, StepTiming.since(started, "load", records=len(hits))


def _scores(view: ViewSearch) -> dict[int, float]:
    """The contents ranked so far, with scores between 0 and 1."""
    plan, order = view.plan, list(view.ranking.scores.items())
    if plan.mode == "hybrid":
        # Each leg has given half of it, also where the view has only one.
        return {content: score * 2 / len(plan.legs) for content, score in order}
    floor = plan.generation.background if plan.mode == "dense" else 0.0
    return dict(scaled(order, depth=view.ranking.depth, floor=floor))
