"""Writes docs/settings.md from the table of settings; `make docs` runs it."""

from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from likewise.settings import PREFIX, Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

# Defaults that differ from machine to machine, in words.
DEFAULTS = {"data_dir": "by system, see below"}

TYPES = {str: "text", bool: "`true` or `false`", Path: "path"}

HEAD = """\
# Settings

Likewise is set by environment variables, or by the same names in a file `.env` in the working directory; a variable
wins over the file. A name that begins with `LIKEWISE_` and is not in this table is refused at start, so that a slip of
the pen does not go unnoticed. `likewise doctor --settings` shows this table.

`make docs` writes this page from `likewise/settings.py`.

| variable | value | default | what it does |
| --- | --- | --- | --- |
"""

FOOT = """
The data folder is `$XDG_DATA_HOME/likewise` or `~/.local/share/likewise` on Linux, `~/Library/Application
Support/likewise` on macOS, and `/var/lib/likewise` for root.
"""


def settings_page() -> str:
    """The page as it should be."""
    return HEAD + "".join(map(_row, Settings.model_fields, Settings.model_fields.values())) + FOOT


def _row(name: str, field: FieldInfo) -> str:
    return f"| `{PREFIX}{name.upper()}` | {_values(field)} | {_default(name, field)} | {field.description} |\n"


def _values(field: FieldInfo) -> str:
    kind = next(part for part in get_args(field.annotation) or (field.annotation,) if part is not NoneType)
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    if get_origin(field.annotation) is tuple:
        choices = get_args(get_args(field.annotation)[0])
        return f"{', '.join(f'`{choice}`' for choice in choices) or 'names'}, by comma"
    return TYPES.get(kind) or _range(field, "whole number" if kind is int else "number")


def _range(field: FieldInfo, kind: str) -> str:
    least, most = _bound(field, "ge"), _bound(field, "le")
    if least is None:
        return kind
    return f"{kind}, {least:,} or more" if most is None else f"{kind}, {least:,} to {most:,}"


def _bound(field: FieldInfo, side: str) -> Any:
    return next((getattr(rule, side) for rule in field.metadata if hasattr(rule, side)), None)


def _default(name: str, field: FieldInfo) -> str:
    if name in DEFAULTS:
        return DEFAULTS[name]
    if field.default is None or field.default == ():
        return "absent"
    if isinstance(field.default, tuple):
        return f"`{','.join(field.default)}`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
