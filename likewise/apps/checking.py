"""JSON and what it must be: one strict parser, and models whose faults are told in our words."""

import re
from collections.abc import Iterable
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from likewise.cleaning import deeper_than
from likewise.errors import Fault, Invalid, Malformed, NotSupported

MAX_DEPTH = 32
MAX_FIELDS = 64
MAX_FAULTS = 20
MAX_POINTER = 200
# Pydantic's tags for the forms that a field may have, which are no part of where it stands.
ONE_OF_IT, LIST_OF_IT = "(one)", "(list)"
FORMS = frozenset({ONE_OF_IT, LIST_OF_IT})
NUMBER_TOO_LARGE = "A number is too long or too large; send it as a string."

M = TypeVar("M", bound=BaseModel)


class RequestModel(BaseModel):
    """A request's body: types are taken as they are, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        # Each unknown field would be a fault of its own, and a million of them take seconds to write down.
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise wrong("too_many_fields", f"This must have at most {MAX_FIELDS} fields.")
        return value


class OldRequest(RequestModel):
    """A body of a route that is older than this server: unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")


def parse_json(raw: bytes) -> Any:
    """Return the value of a JSON document in UTF-8 of at most 32 levels.

    Of equal keys the last counts. Half a surrogate pair, which is no character, becomes U+FFFD. An integer of more than
    64 bits becomes a double.

    Raises:
        Malformed: for what is no JSON, as NaN, infinities, numbers beyond a double, and a byte order mark.
        Invalid: for more levels.
    """
    try:
        value = _loads(raw)
    except orjson.JSONDecodeError as error:
        raise Malformed(_why(raw, error)) from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and deeper_than(value, MAX_DEPTH):
        raise Invalid.at("", f"The body is nested more than {MAX_DEPTH} levels deep.", "too_deep")
    return value


def checked(model: type[M], value: Any) -> M:
    """Return `value` as a `model`, else Invalid with a pointer for each wrong place."""
    if not isinstance(value, dict):
        raise Invalid.at("", "The body must be a JSON object.", "wrong_type")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(faults_of(error), error.error_count()) from None


def invalid(faults: list[Fault], count: int | None = None) -> Invalid:
    """Return the error for `count` faults, of which the first twenty are listed."""
    count = len(faults) if count is None else count
    detail = faults[0].message if count == 1 else f"{count} places of the request are wrong."
    if count > MAX_FAULTS:
        detail = f"{count} places of the request are wrong; the first {MAX_FAULTS} are listed."
    kind = NotSupported if all(fault.code == NotSupported.code for fault in faults) else Invalid
    return kind(detail, faults=faults[:MAX_FAULTS])


def faults_of(error: ValidationError) -> list[Fault]:
    """Return the first twenty faults that pydantic found, in our words: a value is never repeated."""
    found = error.errors(include_url=False, include_input=False)[:MAX_FAULTS]
    return [fault_of(details, [part for part in details["loc"] if part not in FORMS]) for details in found]


def fault_of(details: ErrorDetails, place: Iterable[object]) -> Fault:
    """Return one of pydantic's faults, at a place given as keys and indexes."""
    code, message = _in_our_words(details["type"], details["msg"], details.get("ctx", {}))
    return Fault(pointer(place), code, message)


def wrong(code: str, message: str) -> PydanticCustomError:
    """Return the error that a validator of a field raises; the message must not hold the value."""
    return PydanticCustomError(_OWN + code, message)


def pointer(parts: Iterable[object]) -> str:
    """Return a JSON pointer (RFC 6901), cut where a caller's own key makes it long."""
    escaped = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
    return escaped if len(escaped) <= MAX_POINTER else escaped[:MAX_POINTER] + "…"


def _in_our_words(kind: str, message: str, context: dict[str, Any]) -> tuple[str, str]:
    if kind in _WORDS:
        code, template = _WORDS[kind]
        return code, _ONE.sub(r"1 \1", template.format(**context))
    if kind.startswith(_OWN):
        return kind.removeprefix(_OWN), message
    if kind.endswith(("_type", "_parsing")):
        return "wrong_type", f"This must be {_TYPES.get(kind.rpartition('_')[0], 'of another type')}."
    return "invalid_value", "This value cannot be used here."


# Marks the errors that our own validators raise (`wrong`), whose words hold no value.
_OWN = "likewise_"

_TYPES = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "uuid": "a UUID",
}

_WORDS = {
    "missing": ("required", "This field is required."),
    "extra_forbidden": ("unknown_field", "This request has no such field."),
    "string_too_short": ("too_short", "This must have at least {min_length} characters."),
    "string_pattern_mismatch": ("invalid_value", "This must match {pattern}."),
    "string_too_long": ("too_long", "This must have at most {max_length} characters."),
    "too_long": ("too_long", "This must have at most {max_length} items."),
    "too_short": ("too_short", "This must have at least {min_length} items."),
    "greater_than_equal": ("out_of_range", "This must be at least {ge}."),
    "less_than_equal": ("out_of_range", "This must be at most {le}."),
    "finite_number": ("out_of_range", "This must be a finite number."),
    "literal_error": ("invalid_value", "This must be one of {expected}."),
    "model_attributes_type": ("wrong_type", "This must be an object."),
}
_ONE = re.compile(r"\b1 (character|item|field)s\b")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATES = re.compile(
    rb"(?:\\\\)+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _loads(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        # Half a surrogate pair is the one fault that we fix: everyday tools cut texts in the middle of an emoji.
        if not _ESCAPED_SURROGATE.search(raw):
            raise
        return orjson.loads(_SURROGATES.sub(lambda found: rb"\ufffd" if found[1] else found[0], raw))


def _why(raw: bytes, error: orjson.JSONDecodeError) -> str:
    if "infinity" in error.msg:
        return NUMBER_TOO_LARGE
    if not raw:
        return "The body is empty; send a JSON document."
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[:3] == b"\xef\xbb\xbf":
        return "The body starts with a byte order mark; send UTF-8 without one."
    return f"The body is not valid JSON in UTF-8 (line {error.lineno}, column {error.colno})."
