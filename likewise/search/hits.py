"""The hits of a search: records, contents or groups, read in the order of a ranking until a page is full."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from likewise.db import lookups
from likewise.db.fields import payload_field
from likewise.db.lookups import ContentOccurrences, RecordQuery, StoredRecord
from likewise.db.transaction import Tx
from likewise.db.where import exactly
from likewise.filters import All, Compare, Field, Filter, Not
from likewise.search.plan import SearchPlan, StepTiming
from likewise.search.question import Question
from likewise.search.ranking import ContentRanking

# Contents whose records are looked at in one statement where not all of them may be answered.
CHUNK, GROUP_CHUNK = 1_000, 200
# So long groups are looked for that lie beyond what is nearest; then the answer says that there may be others.
GROUPS_SECONDS = 10.0


@dataclass(frozen=True)
class SearchHit:
    """A hit, with how it was found.

    Attributes:
        score: of the ranking, or of the reranker where that was asked for.
        similarity: a cosine, None for a record without a vector.
        lexical_score: of the words, None where they did not find it.
        found_by: `dense`, `lexical`, or both.
    """

    score: float
    similarity: float | None
    lexical_score: float | None
    found_by: tuple[str, ...]


@dataclass(frozen=True)
class RecordHit(SearchHit):
    """A record that was found."""

    record: StoredRecord


@dataclass(frozen=True)
class GroupHit(RecordHit):
    """The best record of a group, which has a value of the field that is grouped by."""

    group: Any = None


@dataclass(frozen=True)
class ContentHit(SearchHit):
    """A content that was found, with how often and when it was seen."""

    content: ContentOccurrences


@dataclass(frozen=True)
class SearchOutcome:
    """Hits, best first; `degraded` names what was away while they were looked for.

    `more` says that further hits can be asked for; `explanation` tells what was done, without a word of the query.
    """

    hits: Sequence[SearchHit]
    model: str
    took_ms: float
    degraded: tuple[str, ...] = ()
    more: bool = False
    explanation: dict[str, Any] | None = None

    @property
    def records(self) -> Sequence[RecordHit]:
        """The hits of a search for records or groups."""
        return [hit for hit in self.hits if isinstance(hit, RecordHit)]


@dataclass(frozen=True)
class HitPage:
    """Hits from a page's first on, as many as it may have and one more if there is one.

    Attributes:
        tree: the filter under which hits are looked for.
        done: whether there are enough, or no others.
        degraded: what may be missing.
    """

    plan: SearchPlan
    question: Question
    tree: Filter | None
    hits: Sequence[SearchHit] = ()
    done: bool = False
    degraded: tuple[str, ...] = ()
    timings: tuple[StepTiming, ...] = ()

    async def filled(self, tx: Tx, ranking: ContentRanking) -> "HitPage":
        """Return the page with the hits of a ranking, which is deeper than the last or under a narrower filter."""
        if not ranking.depth:
            return replace(self, done=True, timings=())
        if len(ranking.scores) <= self.plan.total and not ranking.is_last:
            return replace(self, timings=())
        started = time.perf_counter()
        query = await self._query()
        if self.plan.passes_over:
            hits = (await self._first(tx, ranking, query))[self.plan.request.offset :]
        else:
            # Mostly nothing comes after it; what does looks at everything anew.
            hits = await self._read(tx, ranking, list(ranking.scores), query, commit=True)
        done = ranking.is_last or len(hits) > self.plan.page_size
        timing = StepTiming.since(started, "load", records=len(hits))
        return replace(self, hits=hits, done=done, timings=(timing,))

    async def _first(self, tx: Tx, ranking: ContentRanking, query: RecordQuery) -> list[SearchHit]:
        """The first hits, where any number of contents may have none that is near enough."""
        hits: list[SearchHit] = []
        contents = list(ranking.scores)
        for at in range(0, len(contents), CHUNK):
            missing = self.plan.total + 1 - len(hits)
            if missing == 0:
                break
            query = replace(query, offset=0, limit=missing)
            hits += await self._read(tx, ranking, contents[at : at + CHUNK], query)
        return hits

    async def _query(self) -> RecordQuery:
        """The page's records and one more, which tells of the next."""
        plan = self.plan
        return RecordQuery(
            limit=plan.page_size + 1,
            offset=plan.request.offset,
            without=self.question.without,
            similar_to=await self.question.vector(),
            min_similarity=plan.options.threshold,
            one_of_each=plan.group_by,
            compared=None if plan.view.generation is None else plan.view.generation.id,
        )

    async def _read(
        self, tx: Tx, ranking: ContentRanking, contents: Sequence[int], query: RecordQuery, *, commit: bool = False
    ) -> list[SearchHit]:
        """The records of contents, or the contents, in their order; with `commit` the transaction ends with it."""
        plan = self.plan
        generation, where = plan.collection.active.id, exactly(plan.tree, plan.collection.id, plan.view.number)

        def found(content: int, similarity: float | None) -> tuple[float, float | None, float | None, tuple[str, ...]]:
            return ranking.scores[content], similarity, ranking.lexical_score(content), ranking.found_by(content)

        if plan.request.unit == "contents":
            seen = await lookups.occurrences(tx, generation, contents, where, query, commit=commit)
            return [ContentHit(*found(one.content, near), one) for one, near in seen]
        records = await lookups.of_contents(tx, generation, contents, where, query, commit=commit)
        return [RecordHit(*found(content, near), one) for one, content, near in records]


@dataclass(frozen=True)
class GroupPage(HitPage):
    """The best hit of each group, in their order, those that are passed over included.

    Records without the field are one group, whose value is null; lists and objects are values like others.

    Attributes:
        groups: the hits by the values of the field.
        looked_at: how many contents of the ranking were looked at.
        known: how many groups there were when the filter was narrowed last.
        began: by `time.monotonic`.
    """

    groups: Mapping[object, GroupHit] = field(default_factory=dict)
    looked_at: int = 0
    known: int = 0
    began: float = field(default_factory=time.monotonic)

    async def filled(self, tx: Tx, ranking: ContentRanking) -> "GroupPage":
        """Return the page with the groups of a ranking; once it is the last, beyond those met so far."""
        started, by, groups, records = time.perf_counter(), self.plan.group_by, dict(self.groups), 0
        assert by is not None
        query = replace(await self._query(), offset=0, limit=None)
        contents = list(ranking.scores)[self.looked_at :]
        for at in range(0, len(contents), GROUP_CHUNK):
            for hit in await self._read(tx, ranking, contents[at : at + GROUP_CHUNK], query):
                assert isinstance(hit, RecordHit)
                value, records = group_value(by, hit.record), records + 1
                groups.setdefault(_key(value), GroupHit(**vars(hit), group=value))
            if len(groups) > self.plan.total:
                break
        timings = (StepTiming.since(started, "load", records=records),) if contents else ()
        hits = list(groups.values())[self.plan.request.offset :]
        page = replace(self, hits=hits, groups=groups, looked_at=len(ranking.scores), timings=timings)
        if len(groups) > self.plan.total:
            return replace(page, done=True)
        return page.beyond(ranking) if ranking.is_last else page

    def beyond(self, ranking: ContentRanking) -> "GroupPage":
        """Return the page under a filter without the groups met so far: what is nearest may belong to few groups."""
        if ranking.exhausted or not ranking.scores or len(self.groups) == self.known:
            return replace(self, done=True)
        if time.monotonic() - self.began > GROUPS_SECONDS:
            return replace(self, done=True, degraded=("groups",))
        assert self.plan.group_by is not None
        values = [hit.group for hit in self.groups.values()]
        narrower = without_groups(self.plan.tree, self.plan.group_by, values)
        return replace(self, tree=narrower, looked_at=0, known=len(self.groups))


def first_page(plan: SearchPlan, question: Question) -> HitPage:
    """Return the page of a search before anything is found."""
    return (HitPage if plan.group_by is None else GroupPage)(plan, question, plan.tree)


def without_groups(tree: Filter | None, by: Field, values: Collection[Any]) -> Filter:
    """Return a filter that leaves out what belongs to groups already met."""
    others = Not(Compare(by, "$in", tuple(values)))
    return others if tree is None else All((tree, others))


def group_value(by: Field, record: StoredRecord) -> Any:
    """Return the value of the field that hits are grouped by."""
    if by.column:
        return getattr(record, by.name)
    value = payload_field(record.payload, by.name)
    others = record.payload.get(by.within) if by.within and value is None else None
    return payload_field(others, by.name) if isinstance(others, Mapping) else value


def _key(value: Any) -> object:
    """A key for a group: 1 and 1.0 are one value, 1 and true are not, and lists cannot be keys."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS) if isinstance(value, bool | list | dict) else value
