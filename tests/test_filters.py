"""The filter language: what it refuses, and where."""

import math
from typing import Any

import pytest

from likewise import filters
from likewise.errors import Invalid


def test_an_apps_own_names_lead_to_columns_and_to_fields() -> None:
    aliases = {"asset_id": "parent", "id": "point_id"}
    named = {key: filters.field_named(key, aliases, "metadata") for key in ("asset_id", "id", "lang", "payload.id")}
    assert named == {
        "asset_id": filters.Field("parent", column=True),
        "id": filters.Field("point_id", column=False, within="metadata"),
        "lang": filters.Field("lang", column=False, within="metadata"),
        "payload.id": filters.Field("id", column=False, within="metadata"),
    }


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
