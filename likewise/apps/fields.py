"""Fields that the routes of several apps take."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from likewise.apps.body import wrong
from likewise.apps.filter_schema import TIME
from likewise.cleaning import deeper_than
from likewise.embedding.provider import MAX_CHARS
from likewise.filters import rfc_3339, why_no_time

MAX_ITEMS = 1_000
MAX_ID = 512
MAX_LIMIT = 100
MAX_PAYLOAD_BYTES = 64 * 2**10
MAX_PAYLOAD_DEPTH = 16

# What the document says of a field that is checked below in words of our own.
NOT_BLANK = r"[^\s\x1c-\x1f\x85]"
WHOLE = r"^[^\x00-\x1f\x7f-\x9f\ufffd]*$"

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
