"""The language of filters, and of times, in JSON Schema."""

from typing import Any

from likewise.filters import KEY, MAX_DEPTH, MAX_NODES, MAX_VALUES, OPERATORS, TIMES

KEY_PATTERN = f"^{KEY.pattern[:-2]}$"
_SCHEMA = "#/components/schemas/"
TIME = {"type": "string", "format": "date-time"}


def _schema_of_condition(name: str, value: dict[str, Any]) -> dict[str, Any]:
    values = {"type": "array", "items": value, "maxItems": MAX_VALUES}
    special = {"$in": values, "$nin": values, "$exists": {"type": "boolean"}, "$not": {"$ref": _SCHEMA + name}}
    operators = {operator: special.get(operator, value) for operator in sorted(OPERATORS | {"$not"})}
    by_operator = {"type": "object", "properties": operators, "additionalProperties": False, "minProperties": 1}
    return {"title": name, "description": "A value, or what holds of it.", "anyOf": [value, by_operator]}


_PARTS = {"type": "array", "items": {"$ref": _SCHEMA + "Filter"}, "minItems": 1}
# The language in JSON Schema, but for how deep and how large a filter may be.
SCHEMAS: dict[str, Any] = {
    "Filter": {
        "title": "Filter",
        "description": f"Every key must hold. At most {MAX_DEPTH} deep, of at most {MAX_NODES} conditions.",
        "type": "object",
        "properties": {
            "$and": _PARTS,
            "$or": _PARTS,
            "$not": {"$ref": _SCHEMA + "Filter"},
            **{name: {"$ref": _SCHEMA + "TimeCondition"} for name in sorted(TIMES)},
        },
        "patternProperties": {KEY_PATTERN: {"$ref": _SCHEMA + "Condition"}},
        "additionalProperties": False,
    },
    "Condition": _schema_of_condition("Condition", {"type": ["string", "number", "boolean", "null"]}),
    "TimeCondition": _schema_of_condition("TimeCondition", {"anyOf": [TIME, {"type": ["number", "boolean", "null"]}]}),
}
