"""Records come, change and go while questions are asked: the answers are those of a brute-force model in Python.

The model knows nothing of candidates, indexes and SQL: it compares every vector, adds up BM25 over every text, and
reads the filter language word for word. From the database it takes only what the steps do not tell: the weight that
each term got when its text came, how many contents have come, and in which order the records did.
"""

import asyncio
import contextlib
import itertools
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection
from psycopg.sql import SQL

from likewise.apps.collections.schemas import HitAnswer
from likewise.db import collections
from likewise.db.maintenance import MAX_SCANNED, Maintenance
from likewise.db.pool import settle
from likewise.db.transaction import table
from likewise.errors import NotFound
from likewise.kind import Policy
from likewise.library import Collection, Likewise
from likewise.search import ranking
from likewise.search.analyzer import analyze
from likewise.search.fusion import fuse
from likewise.search.options import RecordQuestion, SearchOptions, SearchRequest, TextQuestion
from likewise.testing import FakeProvider, ThrowawayPostgres
from tests.flows.opening import likewise_on
from tests.flows.test_filter_language import holds

DEPTH = 100
K1, B = 1.2, 0.75
LONGEST = 7
# Halves and sums are rounded otherwise here and in the database.
CLOSE = 2e-4

COMMON = ["pump", "valve", "rotor", "cold", "freezing", "leak", "alarm", "oil"]
RARE = ["zebra", "quartz", "ember", "lotus", "onyx", "comet"]
TEXTS = st.lists(st.sampled_from(COMMON * 3 + RARE), min_size=1, max_size=LONGEST).map(" ".join)
IDS = st.integers(0, 24).map(lambda n: f"r{n:02}")
MODES = ("hybrid", "dense", "lexical")
LABELS = ["a", "b", "ab", "é"]
NUMBERS = [0, 1, 2, 2.5, -3]
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
MOMENTS = [NOON + timedelta(hours=step) for step in range(3)]
INDEXED = ("n", "tag", "tags", "deep.a")
ABSENT = {"parent": None, "status": None, "occurred_at": None}

COLLECTION = SQL("""
    SELECT c.id, c.contents_total, g.background, g.background_from
    FROM collections c JOIN generations g ON g.id = c.active_generation WHERE c.name = %s
""")
WEIGHTS = SQL("SELECT c.text, t.weights FROM {terms} t JOIN contents c ON c.pk = t.content")
ARRIVAL = SQL("SELECT id, pk FROM records WHERE collection = %s")


@dataclass(frozen=True)
class Question:
    """A question to the product and to the model; if `paged`, for all there is, in pages of `limit`."""

    mode: str
    limit: int
    query: str | None = None
    like: str | None = None
    filters: Mapping[str, Any] | None = None
    threshold: float | None = None
    group_by: str | None = None
    paged: bool = False


@dataclass(frozen=True)
class Expected:
    """One hit as the model has it."""

    id: str
    score: float
    similarity: float | None
    lexical_score: float | None
    group: Any = None


@dataclass
class Facts:
    """The past as the database knows it: each text's weights by term, how many contents came, when records did."""

    weights: dict[str, dict[int, float]]
    contents_total: int
    background: float
    background_from: int
    arrival: dict[str, int]


# Records that come or change, the id of one that goes, or a question.
Step = list[dict[str, Any]] | str | Question


@dataclass
class Model:
    """The records that should be there, and what should be found among them."""

    provider: FakeProvider
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    _vectors: dict[str, np.ndarray] = field(default_factory=dict)

    async def vector(self, text: str) -> np.ndarray:
        """A text's vector of unit length, as it is stored: in half precision."""
        if text not in self._vectors:
            made = (await self.provider.embed([text], "document")).vectors[0].astype(np.float16).astype(np.float64)
            self._vectors[text] = made / np.linalg.norm(made)
        return self._vectors[text]

    async def answer(self, question: Question, facts: Facts) -> list[Expected]:
        """Every hit that there should be, best first, of any number."""
        fitting = sorted((one for one in self.fitting(question) if one != question.like), key=facts.arrival.__getitem__)
        texts = {self.records[id_]["text"] for id_ in fitting}
        asked = question.query if question.like is None else self.records[question.like]["text"]
        vector = await self.vector(asked)
        cosines = {text: float(await self.vector(text) @ vector) for text in texts}
        words = {} if question.mode == "dense" else self._bm25(list(analyze(asked)), texts, facts)
        told = question.mode != "lexical" or question.threshold is not None
        return [
            Expected(id_, score, cosines[text] if told else None, words.get(text), self._group(id_, question.group_by))
            for text, score in _ranked(question.mode, cosines, words, facts.background)
            if question.threshold is None or cosines[text] >= question.threshold
            for id_ in fitting
            if self.records[id_]["text"] == text
        ]

    def _group(self, id_: str, name: str | None) -> Any:
        """The value of the field that is grouped by."""
        record = self.records[id_]
        return None if name is None else record.get(name, record["payload"].get(name))

    def fitting(self, question: Question) -> list[str]:
        """The ids of the records that fit its filter."""
        return [
            id_
            for id_, one in self.records.items()
            if question.filters is None or holds(question.filters, SimpleNamespace(**one))
        ]

    def texts(self) -> set[str]:
        """The distinct texts."""
        return {one["text"] for one in self.records.values()}

    def _bm25(self, terms: Sequence[int], texts: Iterable[str], facts: Facts) -> dict[str, float]:
        """The scores of the texts that have any of the terms; how many texts have each is counted over all."""
        containing = Counter(term for text in self.texts() for term in analyze(text))
        rarity = {term: _rarity(containing[term], facts.contents_total) for term in terms}
        return {
            text: sum(rarity[term] * weight for term, weight in facts.weights[text].items() if term in rarity)
            for text in texts
            if not rarity.keys().isdisjoint(facts.weights[text])
        }


def _rarity(containing: int, total: int) -> float:
    """BM25's idf in the form that is never negative."""
    return math.log1p((max(total, containing) - containing + 0.5) / (containing + 0.5))


def _ranked(
    mode: str, cosines: Mapping[str, float], words: Mapping[str, float], background: float
) -> list[tuple[str, float]]:
    dense, lexical = (sorted(one.items(), key=lambda item: -item[1]) for one in (cosines, words))
    if mode != "hybrid":
        return dense if mode == "dense" else lexical
    names = sorted(cosines)
    number = {text: place for place, text in enumerate(names)}
    by_meaning, by_words = ([(number[text], score) for text, score in one[:DEPTH]] for one in (dense, lexical))
    return [(names[one], score) for one, score in fuse(by_meaning, by_words, depth=DEPTH, background=background)]


async def read_facts(lw: Likewise, name: str) -> Facts:
    """Read what a collection's tables say."""
    # From here on nobody changes what lexical search reckons with.
    await lw.runtime.writer.averages.flush(lw.runtime.pool)
    owner_url = lw.runtime.database.owner_url
    assert owner_url is not None
    async with await AsyncConnection.connect(owner_url, autocommit=True) as connection:
        await settle(connection)
        ((collection, total, *measured),) = await (await connection.execute(COLLECTION, [name])).fetchall()
        statement = WEIGHTS.format(terms=table("terms", collection))
        rows = await (await connection.execute(statement)).fetchall()
        arrival = {str(id_): int(pk) for id_, pk in await (await connection.execute(ARRIVAL, [collection])).fetchall()}
    # A sparsevec counts its entries from 0, terms from 1.
    weights = {text: {at + 1: one for at, one in zip(of.indices(), of.values(), strict=True)} for text, of in rows}
    return Facts(weights, int(total), *measured, arrival)


def assert_weights_are_of_some_average(facts: Facts) -> None:
    """A weight is BM25's part for term frequency with the average length of some moment."""
    for text, weights in facts.weights.items():
        counts = analyze(text)
        assert weights.keys() == counts.keys()
        for term, weight in weights.items():
            spread = counts[term] * (K1 + 1) / weight - counts[term]
            average = K1 * B * counts.total() / (spread - K1 * (1 - B))
            assert 1 - CLOSE <= average <= LONGEST + CLOSE


def firsts_of_groups(expected: Sequence[Expected]) -> list[Expected]:
    """The best hit of each value; true is not 1, and a list is a value."""
    firsts: dict[tuple[bool, str], Expected] = {}
    for one in expected:
        firsts.setdefault((isinstance(one.group, bool), repr(one.group)), one)
    return list(firsts.values())


def assert_as_expected(hits: Sequence[HitAnswer], expected: Sequence[Expected], question: Question) -> None:
    """The same hits in the same order; which of equal ones come first, and so which are cut off, is left open."""
    by_id = {one.id: one for one in expected}
    if question.group_by is not None:
        expected = firsts_of_groups(expected)
        assert len(firsts_of_groups([by_id[hit.id] for hit in hits])) == len(hits)
    wanted = len(expected) if question.paged else min(question.limit, len(expected))
    assert len({hit.id for hit in hits}) == len(hits) == wanted
    assert {hit.id for hit in hits} <= by_id.keys()
    for hit, at_its_place in zip(hits, expected, strict=False):
        own = by_id[hit.id]
        assert hit.group == own.group
        assert hit.score == pytest.approx(at_its_place.score, abs=CLOSE)
        told = (hit.score, hit.similarity, hit.lexical_score)
        for given_, expected_ in zip(told, (own.score, own.similarity, own.lexical_score), strict=True):
            assert (given_ is None) is (expected_ is None), (hit.id, told, own)
            assert given_ is None or given_ == pytest.approx(expected_, abs=CLOSE), (hit.id, told, own)


async def ask(lw: Likewise, name: str, question: Question) -> list[HitAnswer]:
    """The product's answer, or all its pages."""
    options = asdict(question)
    paged, query, record = options.pop("paged"), options.pop("query"), options.pop("like")
    if not paged:
        collection = lw.collection(name)
        found = await (collection.search(query, **options) if record is None else collection.similar(record, **options))
        return found.hits
    asked = TextQuestion(query) if record is None else RecordQuestion(record)
    hits: list[HitAnswer] = []
    while True:
        found = await lw.collections.search(
            await lw.tenant(), name, SearchRequest(asked, SearchOptions(**options), len(hits))
        )
        hits += found.hits
        assert len(found.hits) == question.limit or not found.more
        if not found.more:
            return hits


@dataclass(repr=False)
class Both:
    """The product and the model, taking the same steps."""

    lw: Likewise
    collection: Collection
    model: Model

    async def take(self, step: Step) -> None:
        """One step: records come or change, one goes, or a question is asked."""
        if isinstance(step, list):
            await self.collection.add(step)
            self.model.records.update({one["id"]: {**ABSENT, **one} for one in step})
        elif isinstance(step, str):
            if self.model.records.pop(step, None) is not None:
                await self.collection.delete(step)
        elif step.like is None or step.like in self.model.records:
            await self.compare(step)

    async def compare(self, question: Question) -> None:
        """Ask both."""
        facts = await read_facts(self.lw, self.collection.name)
        assert facts.weights.keys() == self.model.texts()
        assert_weights_are_of_some_average(facts)
        hits = await ask(self.lw, self.collection.name, question)
        assert_as_expected(hits, await self.model.answer(question, facts), question)


@pytest.fixture(scope="module")
async def lw(postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Likewise]:
    """One on a database of its own, whose words are counted anew for each question."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "REMEMBERED_SECONDS", 0.0)
        async with likewise_on(postgres, tmp_path_factory, FakeProvider()) as opened:
            yield opened


async def fresh(lw: Likewise, name: str, indexed: Sequence[str]) -> Both:
    """An empty collection, and a model of it."""
    collection = lw.collection(name)
    with contextlib.suppress(NotFound):
        await collection.drop()
    await collection.create(policy=Policy(indexed=tuple(indexed)))
    return Both(lw, collection, Model(FakeProvider()))


def filters_on(names: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Filters of every operator over these fields, nested."""

    def leaf(name: str) -> st.SearchStrategy[dict[str, Any]]:
        value = names[name]
        operators = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"] + ([] if name == "occurred_at" else ["$contains"])
        condition = st.one_of(
            value,
            st.dictionaries(st.sampled_from(operators), value, min_size=1, max_size=2),
            st.builds(lambda of, many: {of: many}, st.sampled_from(["$in", "$nin"]), st.lists(value, max_size=3)),
            st.booleans().map(lambda there: {"$exists": there}),
        )
        return condition.map(lambda one: {name: one})

    return st.recursive(
        st.sampled_from(sorted(names)).flatmap(leaf),
        lambda inner: st.one_of(
            st.builds(
                lambda of, parts: {of: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
            ),
            inner.map(lambda part: {"$not": part}),
        ),
        max_leaves=4,
    )


labels, numbers, moments = st.sampled_from(LABELS), st.sampled_from(NUMBERS), st.sampled_from(MOMENTS)
payloads = st.fixed_dictionaries(
    {},
    optional={
        "n": numbers,
        "tag": labels | st.none(),
        "tags": st.lists(labels | numbers, max_size=3),
        "deep": st.fixed_dictionaries({"a": labels | numbers}),
        "plain": labels | st.booleans(),
    },
)
records = st.fixed_dictionaries(
    {"id": IDS, "text": TEXTS, "payload": payloads},
    optional={"parent": labels, "status": labels, "occurred_at": moments},
)
filters = filters_on(
    {
        "n": numbers,
        "tag": labels | st.none(),
        "tags": labels | numbers,
        "deep.a": labels | numbers,
        "plain": labels | st.booleans(),
        "missing": labels | st.none(),
        "id": IDS,
        "parent": labels | st.none(),
        "status": labels,
        "occurred_at": moments.map(datetime.isoformat),
    }
)
asked = st.fixed_dictionaries(
    {"mode": st.sampled_from(MODES), "limit": st.integers(1, 30)},
    optional={
        "filters": filters,
        "threshold": st.sampled_from([-0.9, 0.0137, 0.3119, 0.8123]),
        "group_by": st.sampled_from(["n", "tag", "tags", "plain", "status", "missing"]),
        "paged": st.booleans(),
    },
)
questions = st.one_of(
    st.builds(lambda query, rest: Question(query=query, **rest), TEXTS, asked),
    st.builds(lambda like, rest: Question(like=like, **rest), IDS, asked),
)
batches = st.lists(records, min_size=1, max_size=8, unique_by=lambda one: one["id"])
steps = st.lists(st.one_of(batches, batches, IDS, questions, questions), max_size=10)


@pytest.fixture(scope="module", autouse=True)
def nothing_remembered() -> Iterator[None]:
    """A search may reckon with a collection's counts of a second ago; the model knows those of now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collections, "RECENT_SECONDS", 0.0)
        yield


@settings(max_examples=40)
@given(first=batches, steps=steps, last=questions, indexed=st.sampled_from([(), INDEXED]))
async def test_answers_are_those_of_the_model_whatever_came_before(
    lw: Likewise, first: list[dict[str, Any]], steps: list[Step], last: Question, indexed: Sequence[str]
) -> None:
    both = await fresh(lw, "few", indexed)
    for step in (first, *steps, last):
        await both.take(step)
    # And the only text with a rare word is among the first two
    for word in RARE:
        those = [id_ for id_, one in both.model.records.items() if word in one["text"].split()]
        if len({both.model.records[id_]["text"] for id_ in those}) == 1:
            found = await both.collection.search(word, limit=len(those) + 1)
            assert set(those) <= {hit.id for hit in found.hits}


@pytest.fixture(scope="module")
async def many(lw: Likewise) -> Both:
    """More texts than a ranking holds, with fields by which half of them and few of them can be told."""
    both = await fresh(lw, "many", INDEXED)
    chance = random.Random(5)
    texts = {" ".join(chance.choices(COMMON, k=chance.randint(2, LONGEST))) for _ in range(400)}
    rows = [
        {"id": f"m{n:03}", "text": text, "payload": {"n": n % 20, "tags": [LABELS[n % 3]], "plain": n % 7 == 0}}
        for n, text in enumerate(sorted(texts))
    ]
    await both.take(rows)
    assert len(rows) > 2 * DEPTH
    # Once the background is measured, nothing of what the fusion knows changes any more.
    while not (await maintained(both))[1]:
        await asyncio.sleep(0.2)
    return both


async def maintained(both: Both, *, max_scanned: int = MAX_SCANNED) -> tuple[bool, bool]:
    """Do one more step of maintenance; return if there is an index, and a background. Statistics may be late."""
    owner_url = both.lw.runtime.database.owner_url
    assert owner_url is not None
    await Maintenance(owner_url, max_scanned=max_scanned).step()
    facts, stats = await read_facts(both.lw, both.collection.name), await both.collection.stats()
    return stats["index"] == "hnsw", facts.background_from > 0


SOME = [None, {"n": {"$lt": 10}}, {"n": 3}, {"$or": [{"n": 3}, {"tags": {"$contains": "b"}}]}, {"plain": True}]


@pytest.mark.parametrize("filters_", SOME)
async def test_lists_that_are_cut_at_their_hundredth_are_fused_as_in_the_model(
    many: Both, filters_: dict[str, Any] | None
) -> None:
    for mode, query in itertools.product(MODES, ("pump cold", "freezing oil alarm leak", "rotor")):
        await many.compare(Question(mode, 60, query, filters=filters_))


async def test_with_the_index_as_well_as_many_come_as_fit_with_their_own_scores(many: Both) -> None:
    # Given an index, which need not find the nearest
    while not (await maintained(many, max_scanned=0))[0]:
        await asyncio.sleep(0.2)
    facts = await read_facts(many.lw, many.collection.name)
    # When texts are asked for by meaning, in the whole and in parts of it
    for query, filters_ in itertools.product(("pump cold", "rotor valve", "oil"), SOME):
        question = Question("dense", 80, query, filters=filters_)
        hits = await ask(many.lw, many.collection.name, question)
        # Then
        own = {one.id: one.score for one in await many.model.answer(question, facts)}
        scores = [hit.score for hit in hits]
        assert len({hit.id for hit in hits}) == len(hits) == min(question.limit, len(own))
        assert scores == sorted(scores, reverse=True)
        assert scores == [pytest.approx(own[hit.id], abs=CLOSE) for hit in hits]
