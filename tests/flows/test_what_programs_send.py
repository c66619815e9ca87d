"""What a program hands to the library: kept exactly as it is, or refused with its place and nothing stored."""

import math
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likewise.cleaning import cleaned, cleaned_json
from likewise.errors import Invalid, NotFound
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.testing import FakeProvider, ThrowawayPostgres
from tests.flows.opening import likewise_on

anything = st.text(st.characters(), max_size=40)
labels = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | anything,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(anything, inner, max_size=4),
    max_leaves=12,
)
payloads = st.dictionaries(anything, values, max_size=5)


@pytest.fixture(scope="module")
async def shared(postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Likewise]:
    """A Likewise for the tests of this module."""
    async with likewise_on(postgres, tmp_path_factory, FakeProvider(), worker=False) as lw:
        await lw.collection("kept").create(policy=Policy(indexed=("a", "b.c", "é")))
        await lw.collection("refused").create()
        yield lw


@settings(max_examples=60)
@given(st.lists(st.tuples(labels, anything, payloads, st.none() | labels), min_size=1, max_size=8))
async def test_what_was_stored_is_what_comes_back(shared: Likewise, records: list[tuple[Any, ...]]) -> None:
    # Given
    kept = shared.collection("kept")
    distinct = {id_: (text + ".", payload, parent) for id_, text, payload, parent in records}
    # When
    given_ = [
        {"id": id_, "text": text, "payload": payload, "parent": parent, "status": parent}
        for id_, (text, payload, parent) in distinct.items()
    ]
    await kept.add(given_, wait=False)
    # Then
    for id_, (text, payload, parent) in distinct.items():
        record = await kept.get(id_)
        assert record.text == cleaned(text)
        assert (record.parent, record.status) == (parent, parent)
        assert same(record.payload, cleaned_json(payload))
        # And it can be answered as JSON again.
        assert same(orjson.loads(orjson.dumps(record.payload)), record.payload)
    assert (await kept.add(given_, wait=False)).unchanged == len(given_)


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same as JSON: numbers by their digits, whether they have a point or not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)):
        return Decimal(repr(one)) == Decimal(repr(other))
    return type(one) is type(other) and bool(one == other)


DEEP: dict[str, Any] = {}
for _ in range(10_000):
    DEEP = {"a": DEEP}

REFUSED: dict[str, tuple[Any, str]] = {
    "an id with a null byte": ({"id": "a\x00", "text": "x"}, "/1/id"),
    "an id with half a character": ({"id": "a\ud800", "text": "x"}, "/1/id"),
    "an empty id": ({"id": "", "text": "x"}, "/1/id"),
    "an id that is no text": ({"id": 7, "text": "x"}, "/1/id"),
    "a long id": ({"id": "x" * 513, "text": "x"}, "/1/id"),
    "no text": ({"id": "a"}, "/1/text"),
    "a blank text": ({"id": "a", "text": " \n"}, "/1/text"),
    "a text that is none": ({"id": "a", "text": b"x"}, "/1/text"),
    "an unknown field": ({"id": "a", "text": "x", "color": "red"}, "/1/color"),
    "NaN": ({"id": "a", "text": "x", "payload": {"n": math.nan}}, "/1/payload"),
    "infinity": ({"id": "a", "text": "x", "payload": {"n": [math.inf]}}, "/1/payload"),
    "more than 64 bits": ({"id": "a", "text": "x", "payload": {"n": 2**64}}, "/1/payload"),
    "an object": ({"id": "a", "text": "x", "payload": {"n": object()}}, "/1/payload"),
    "bytes": ({"id": "a", "text": "x", "payload": {"n": b"x"}}, "/1/payload"),
    "a key that is no text": ({"id": "a", "text": "x", "payload": {1: 1}}, "/1/payload"),
    "a payload that is a list": ({"id": "a", "text": "x", "payload": [1]}, "/1/payload"),
    "a deep payload": ({"id": "a", "text": "x", "payload": DEEP}, "/1/payload"),
    "a large payload": ({"id": "a", "text": "x", "payload": {"n": "x" * 2**17}}, "/1/payload"),
    "a record's id with a null byte": (NewRecord("a\x00", "x"), "/1/id"),
    "a record's NaN": (NewRecord("a", "x", {"n": math.nan}), "/1/payload"),
    "a record's deep payload": (NewRecord("a", "x", DEEP), "/1/payload"),
    "a record's payload that is a list": (NewRecord("a", "x", cast(Any, [1])), "/1/payload"),
    "a record's long id": (NewRecord("x" * 513, "x"), "/1/id"),
    "a record's blank text": (NewRecord("a", " "), "/1/text"),
    "a record without a text": (NewRecord("a"), "/1/text"),
    "a record's time without a zone": (NewRecord("a", "x", occurred_at=datetime(2026, 1, 31)), "/1/occurred_at"),  # noqa: DTZ001
    "a record's time before the first year": (
        NewRecord("a", "x", occurred_at=datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))),
        "/1/occurred_at",
    ),
    "the same id twice": ({"id": "good", "text": "x"}, "/1/id"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_cannot_be_kept_is_refused_with_its_place_and_nothing_is_stored(shared: Likewise, what: str) -> None:
    record, place = REFUSED[what]
    notes = shared.collection("refused")
    with pytest.raises(Invalid) as refused:
        await notes.add([{"id": "good", "text": "good"}, record], wait=False)
    assert place in {fault.pointer for fault in refused.value.faults}
    assert (await notes.stats())["records"] == 0


@pytest.mark.parametrize("id_", ["\x00", "\ud800", "", "x" * 10_000, "missing"])
async def test_an_id_that_nothing_can_have_is_not_found(shared: Likewise, id_: str) -> None:
    notes = shared.collection("refused")
    for work in (notes.get, notes.delete):
        with pytest.raises(NotFound):
            await work(id_)
    with pytest.raises((NotFound, Invalid)):
        await notes.similar(id_)


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"query": ""}, "/query"),
        ({"query": " \n"}, "/query"),
        ({"query": "x" * 200_001}, "/query"),
        ({"query": "x", "limit": 0}, "/limit"),
        ({"query": "x", "limit": -1}, "/limit"),
        ({"query": "x", "limit": 10**9}, "/limit"),
        ({"query": "x", "limit": "5"}, "/limit"),
        ({"query": "x", "limit": True}, "/limit"),
        ({"query": "x", "threshold": math.nan}, "/threshold"),
        ({"query": "x", "threshold": 2}, "/threshold"),
        ({"query": "x", "threshold": -2}, "/threshold"),
        ({"query": "x", "mode": "fuzzy"}, "/mode"),
        ({"query": "x", "filters": [1]}, "/filters"),
        ({"query": "x", "filters": {"$x": 1}}, "/filters"),
    ],
)
async def test_a_question_out_of_bounds_is_refused_with_its_place(
    shared: Likewise, asked: dict[str, Any], place: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await shared.collection("refused").search(**asked)
    assert refused.value.faults[0].pointer == place


@pytest.mark.parametrize(
    "query", ["\x00", "\ud800", "🙂", '"', "AND NOT", "col:x", "*", "word " * 10_000, "\u0301" * 999]
)
async def test_odd_questions_are_answered(shared: Likewise, query: str) -> None:
    for mode in ("hybrid", "dense", "lexical"):
        assert (await shared.collection("refused").search(query, mode=mode)).hits == []


@pytest.mark.parametrize(
    "name", ["", "A", "0a", "a b", "a/b", "a\x00", "x" * 64, "segments:mini", "é", "a;DROP TABLE x"]
)
async def test_names_that_no_collection_has_are_refused(shared: Likewise, name: str) -> None:
    odd = shared.collection(name)
    with pytest.raises(Invalid):
        await odd.create()
    with pytest.raises(Invalid):
        await odd.add([{"id": "a", "text": "x"}])
    for work in (odd.stats, odd.drop):
        with pytest.raises(NotFound):
            await work()


@pytest.mark.parametrize("records", ["abc", {"id": "1", "text": "x"}, None, 5, ["abc"], [None], [("id", "1")]])
async def test_what_is_no_list_of_records_is_refused(lw: Likewise, records: Any) -> None:
    with pytest.raises(Invalid):
        await lw.collection("notes").add(records)


@pytest.mark.parametrize("texts", ["abc", "", None, 5, ["a", 5], [None], [b"a"]])
async def test_what_is_no_list_of_texts_is_refused(lw: Likewise, texts: Any) -> None:
    with pytest.raises(Invalid):
        await lw.embed(texts)


async def test_an_id_given_twice_far_apart_stores_nothing(lw: Likewise) -> None:
    # Given a list longer than one transaction takes, and a late record with the id of an early one
    records = [{"id": str(n), "text": f"text {n}"} for n in range(1_100)] + [{"id": "3", "text": "again"}]
    # When it is added, then it is refused with the place of the late one, before anything is stored
    with pytest.raises(Invalid) as refused:
        await lw.collection("notes").add(records, wait=False)
    assert [fault.pointer for fault in refused.value.faults] == ["/1100/id"]
    with pytest.raises(NotFound):
        await lw.collection("notes").stats()
