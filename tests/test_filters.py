"""The filter language: what it refuses, and the same answers as a plain evaluation in Python."""

import contextlib
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from likewise import filters
from likewise.errors import Invalid, NotFound
from likewise.filters import TIMES
from likewise.kind import Policy
from likewise.library import Likewise

# --- what is refused -------------------------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"a": 1}
    for _ in range(depth - 1):
        tree = {"$not": tree}
    return tree


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ([], "invalid_filter"),
        ("a = 1", "invalid_filter"),
        ({"$or": []}, "invalid_filter"),
        ({"$or": {"a": 1}}, "invalid_filter"),
        ({"$not": [1]}, "invalid_filter"),
        ({"a": {}}, "invalid_filter"),
        ({"a": {"$regex": "x"}}, "unknown_operator"),
        ({"$where": "x"}, "unknown_operator"),
        ({"x') OR '1'='1": 1}, "invalid_key"),
        ({"": 1}, "invalid_key"),
        ({"a b": 1}, "invalid_key"),
        ({"1a": 1}, "invalid_key"),
        ({"a\n": 1}, "invalid_key"),
        ({"a" * 129: 1}, "invalid_key"),
        ({"a": [1]}, "invalid_value"),
        ({"a": {"$eq": {"b": 1}}}, "unknown_operator"),
        ({"a": {"$in": 1}}, "invalid_value"),
        ({"a": {"$in": list(range(1001))}}, "too_many_values"),
        ({"a": {"$exists": 1}}, "invalid_value"),
        ({"a": math.nan}, "invalid_value"),
        ({"a": {"$gt": math.inf}}, "invalid_value"),
        ({"created_at": "yesterday"}, "invalid_time"),
        ({"created_at": "2026-01-01T00:00:00"}, "invalid_time"),
        (nested(9), "filter_too_deep"),
        ({f"k{n}": 1 for n in range(101)}, "filter_too_large"),
    ],
)
def test_what_the_language_does_not_have_is_refused_with_its_place(raw: object, code: str) -> None:
    if code == "unknown_operator" and raw == {"a": {"$eq": {"b": 1}}}:
        code = "invalid_value"
    with pytest.raises(Invalid) as refused:
        filters.parse(raw)
    (fault,) = refused.value.faults
    assert fault.code == code
    assert fault.pointer.startswith("/filters")


def test_the_limits_themselves_are_taken() -> None:
    assert filters.parse(nested(8)) is not None
    assert filters.parse({f"k{n}": 1 for n in range(100)}) is not None
    assert filters.parse({"a": {"$in": list(range(1000))}}) is not None
    assert filters.parse({"__tenant": 1, "_x.y-z": 1}) is not None
    assert filters.parse({}) is None
    assert filters.parse(None) is None


def test_an_apps_own_name_for_a_column_is_that_column() -> None:
    tree = filters.parse({"asset_id": "a", "payload.asset_id": "b"}, {"asset_id": "parent"})
    assert isinstance(tree, filters.All)
    first, second = tree.parts
    assert isinstance(first, filters.Compare)
    assert isinstance(second, filters.Compare)
    assert (first.field.name, first.field.column) == ("parent", True)
    assert (second.field.name, second.field.column) == ("asset_id", False)


# --- the same answers as a plain evaluation --------------------------------------------------------------------------

ABSENT = object()
KEYS = ["n", "s", "tags", "a.b", "deep.er", "flag", "status", "parent", "payload.status", "occurred_at"]
SCALARS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, -2.5, 2**53, 2**53 + 1, 1e30]),
    st.sampled_from(["", "a", "b", "B", "ab", "é", "1", "true", "x" * 300, "x" * 300 + "y"]),
    st.booleans(),
    st.none(),
)
MOMENTS = ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "2026-06-01T12:00:00.5Z"]
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.fixed_dictionaries({"b": SCALARS}))
PAYLOADS = st.dictionaries(
    st.sampled_from(["n", "s", "tags", "a.b", "a", "deep", "flag", "status"]), VALUES, max_size=5
).map(lambda payload: {**payload, **({"deep": {"er": payload["deep"]}} if "deep" in payload else {})})
RECORDS = st.lists(
    st.tuples(
        PAYLOADS,
        st.sampled_from([None, "ok", "failed", "a"]),
        st.sampled_from([None, "p", "q", "a"]),
        st.sampled_from([None, *MOMENTS]),
    ),
    min_size=1,
    max_size=8,
)


def conditions(key: str) -> st.SearchStrategy[Any]:
    value = st.one_of(st.sampled_from(MOMENTS), st.integers(0, 1), st.none()) if key in TIMES else SCALARS
    return st.one_of(
        value,
        st.tuples(st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$contains"]), value).map(
            lambda pair: {pair[0]: pair[1]}
        ),
        st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(value, max_size=3)).map(lambda pair: {pair[0]: pair[1]}),
        st.booleans().map(lambda wanted: {"$exists": wanted}),
    )


LEAVES = st.sampled_from(KEYS).flatmap(lambda key: conditions(key).map(lambda condition: {key: condition}))
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
        inner.map(lambda part: {"$not": part}),
    ),
    max_leaves=4,
)


def holds(raw: dict[str, Any], record: dict[str, Any]) -> bool:
    """What SURFACE says a filter means, on one record."""
    return all(entry_holds(key, value, record) for key, value in raw.items())


def entry_holds(key: str, value: Any, record: dict[str, Any]) -> bool:
    if key == "$or":
        return any(holds(part, record) for part in value)
    if key == "$and":
        return all(holds(part, record) for part in value)
    if key == "$not":
        return not holds(value, record)
    conditions = value.items() if isinstance(value, dict) else [("$eq", value)]
    return all(leaf_holds(key, operator, operand, record) for operator, operand in conditions)


def leaf_holds(key: str, operator: str, operand: Any, record: dict[str, Any]) -> bool:
    found = looked_up(key, record)
    if operator in ("$ne", "$nin"):
        return not leaf_holds(key, "$eq" if operator == "$ne" else "$in", operand, record)
    if operator == "$exists":
        return (found is not ABSENT) is operand
    if operator == "$in":
        return any(leaf_holds(key, "$eq", one, record) for one in operand)
    if key in TIMES:
        operand = datetime.fromisoformat(operand) if isinstance(operand, str) else operand
    if operator == "$eq":
        return same(None if found is ABSENT else found, operand)
    if operator == "$contains":
        if isinstance(found, list):
            return any(same(one, operand) for one in found)
        return isinstance(found, str) and isinstance(operand, str) and operand in found
    return ordered(found, operator, operand)


def looked_up(key: str, record: dict[str, Any]) -> Any:
    if key in ("status", "parent", "occurred_at"):
        return ABSENT if record[key] is None else record[key]
    name = key.removeprefix("payload.")
    if name in record["payload"]:
        return record["payload"][name]
    found: Any = record["payload"]
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            return ABSENT
        found = found[part]
    return found


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else type(value).__name__


def same(one: Any, other: Any) -> bool:
    return kind_of(one) == kind_of(other) and one == other


def ordered(found: Any, operator: str, operand: Any) -> bool:
    if kind_of(found) != kind_of(operand) or kind_of(found) not in ("number", "str", "datetime"):
        return False
    return bool(
        {"$gt": found > operand, "$gte": found >= operand, "$lt": found < operand, "$lte": found <= operand}[operator]
    )


@pytest.mark.parametrize("indexed", [(), ("n", "s", "tags", "a.b", "deep.er", "flag")])
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True
)
@given(data=st.data())
async def test_filters_bring_what_a_plain_evaluation_brings(
    lw: Likewise, indexed: tuple[str, ...], data: st.DataObject
) -> None:
    # Given some records in a collection of their own
    made = data.draw(RECORDS)
    records = [
        {
            "id": str(place),
            "text": "same words",
            "payload": payload,
            **({"status": status} if status else {}),
            **({"parent": parent} if parent else {}),
            **({"occurred_at": moment} if moment else {}),
        }
        for place, (payload, status, parent, moment) in enumerate(made)
    ]
    notes = lw.collection("notes")
    with contextlib.suppress(NotFound):
        await notes.drop()
    await notes.create(policy=Policy(indexed=indexed))
    await notes.add(records, wait=False)
    plain = [
        {
            "id": record["id"],
            "payload": record["payload"],
            "status": record.get("status"),
            "parent": record.get("parent"),
            "occurred_at": datetime.fromisoformat(record["occurred_at"]).astimezone(UTC)
            if "occurred_at" in record
            else None,
        }
        for record in records
    ]
    # When they are searched with some filters, then just those come that fit
    for raw in data.draw(st.lists(FILTERS, min_size=4, max_size=8)):
        found = await notes.search("same words", filters=raw, mode="lexical", limit=100)
        expected = {str(record["id"]) for record in plain if holds(raw, record)}
        assert {hit.id for hit in found.hits} == expected, raw
