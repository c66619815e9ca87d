"""Fields that the routes of several apps take."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from likewise.apps.body import wrong
from likewise.embedding.texts import MAX_CHARS

# What the document says; checked below in words of our own.
NOT_BLANK = r"[^\s\x1c-\x1f\x85]"


def _not_blank(value: str) -> str:
    if not value.strip():
        raise wrong("blank", "This must not be blank.")
    return value


def _of_number(value: object) -> object:
    """JSON has one kind of number: 10.0 is as whole as 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# After the bounds of an integer: those that come after it are lost to the document.
AS_WHOLE_NUMBER = BeforeValidator(_of_number)
Text = Annotated[str, Field(max_length=MAX_CHARS, json_schema_extra={"pattern": NOT_BLANK}), AfterValidator(_not_blank)]
