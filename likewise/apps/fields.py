"""Fields that the routes of several apps take, and the language of filters in JSON Schema."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from likewise.apps.checking import wrong
from likewise.cleaning import deeper_than
from likewise.embedding.provider import MAX_CHARS
from likewise.filters import KEY, MAX_DEPTH, MAX_NODES, MAX_VALUES, OPERATORS, TIMES, rfc_3339, why_no_time

MAX_ITEMS = 1_000
MAX_ID = 512
MAX_LIMIT = 100
MAX_PAYLOAD_BYTES = 64 * 2**10
MAX_PAYLOAD_DEPTH = 16

# What the document says of a field that is checked below in words of our own.
NOT_BLANK = r"[^\s\x1c-\x1f\x85]"
WHOLE = r"^[^\x00-\x1f\x7f-\x9f\ufffd]*$"

KEY_PATTERN = f"^{KEY.pattern[:-2]}$"
_SCHEMA = "#/components/schemas/"
TIME = {"type": "string", "format": "date-time"}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _not_blank(value: str) -> str:
    if not value.strip():
        raise wrong("blank", "This must not be blank.")
    return value


def _whole(value: str) -> str:
    if _CONTROL.search(value):
        raise wrong("control_character", "This must not contain control characters.")
    if "\ufffd" in value:
        # Two ids that differed in what was lost would be one by now, and a record would replace another.
        raise wrong("lost_character", "This contains U+FFFD, a character that was lost on the way; send it whole.")
    return value


def _moment(value: object) -> object:
    if value is None:
        return value
    moment = rfc_3339(value) if isinstance(value, str) else _in_utc(value)
    if moment is not None:
        return moment
    raise wrong("invalid_time", why_no_time(value))


def _in_utc(value: object) -> datetime | None:
    """A time that a program gives as such."""
    try:
        return value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo is not None else None
    except OverflowError:
        return None


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    if len(orjson.dumps(value)) > MAX_PAYLOAD_BYTES:
        raise wrong("too_large", f"A payload may have {MAX_PAYLOAD_BYTES // 2**10} KiB as JSON.")
    if deeper_than(value, MAX_PAYLOAD_DEPTH):
        raise wrong("too_deep", f"A payload may be nested {MAX_PAYLOAD_DEPTH} levels deep.")
    return value


def _of_number(value: object) -> object:
    """JSON has one kind of number: 10.0 is as whole as 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# After the bounds of an integer: those that come after it are lost to the document.
AS_WHOLE_NUMBER = BeforeValidator(_of_number)
Text = Annotated[str, Field(max_length=MAX_CHARS, json_schema_extra={"pattern": NOT_BLANK}), AfterValidator(_not_blank)]
Label = Annotated[
    str, Field(min_length=1, max_length=MAX_ID, json_schema_extra={"pattern": WHOLE}), AfterValidator(_whole)
]
Moment = Annotated[datetime, BeforeValidator(_moment, json_schema_input_type=Annotated[str, WithJsonSchema(TIME)])]
CheckedPayload = Annotated[dict[str, Any], AfterValidator(_bounded)]


def _schema_of_condition(name: str, value: dict[str, Any]) -> dict[str, Any]:
    values = {"type": "array", "items": value, "maxItems": MAX_VALUES}
    special = {"$in": values, "$nin": values, "$exists": {"type": "boolean"}, "$not": {"$ref": _SCHEMA + name}}
    operators = {operator: special.get(operator, value) for operator in sorted(OPERATORS | {"$not"})}
    by_operator = {"type": "object", "properties": operators, "additionalProperties": False, "minProperties": 1}
    return {"title": name, "description": "A value, or what holds of it.", "anyOf": [value, by_operator]}


_PARTS = {"type": "array", "items": {"$ref": _SCHEMA + "Filter"}, "minItems": 1}
# The language in JSON Schema, but for how deep and how large a filter may be.
FILTER_SCHEMAS: dict[str, Any] = {
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
