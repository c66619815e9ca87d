"""What Postgres cannot hold in a text: NUL, and halves of surrogate pairs."""

import re
from collections.abc import Mapping
from typing import Any

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def cleaned(text: str) -> str:
    """The text with each NUL and lone surrogate as U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text) if _UNSTORABLE.search(text) else text


def cleaned_json(value: Any) -> Any:
    """The same for every string, keys included, of a JSON value."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, Mapping):
        return {cleaned(str(key)): cleaned_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned_json(one) for one in value]
    return value
