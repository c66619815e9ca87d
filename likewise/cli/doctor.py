"""`likewise doctor`: one part after the other, what is found, and the mend if that is a fault."""

import os
from collections.abc import AsyncIterator
from typing import Any

from dotenv import dotenv_values

from likewise.cli import cache_checks, database_checks, issuer_checks, machine_checks, model_checks
from likewise.cli.finding import Finding, reason
from likewise.errors import LikewiseError
from likewise.settings import ENV_FILE, PREFIX, Settings, load_settings

__all__ = ["Finding", "findings", "setting_rows"]


async def findings() -> AsyncIterator[Finding]:
    """Look at one part after the other; those that build on a broken one are left out."""
    yield machine_checks.python()
    yield machine_checks.terminal()
    yield machine_checks.processor()
    yield machine_checks.clock()
    try:
        settings = load_settings()
        settings.require_safe_address()
    except LikewiseError as error:
        yield Finding("settings", error.detail, "Set it right; `likewise doctor --settings` lists every setting.")
        return
    yield Finding("settings", "every LIKEWISE_ variable is known and has a fitting value")
    yield machine_checks.folder(settings)
    yield machine_checks.disk(settings)
    async for finding in _attempted("model", model_checks.models(settings), settings):
        yield finding
    async for finding in _attempted("cache", cache_checks.cache(settings), settings):
        yield finding
    async for finding in _attempted("issuer", issuer_checks.issuer(settings), settings):
        yield finding
    async for finding in _attempted("database", database_checks.database(settings), settings):
        yield finding


async def _attempted(part: str, looks: AsyncIterator[Finding], settings: Settings) -> AsyncIterator[Finding]:
    """What looks find; one that the file system stops is a finding too."""
    try:
        async for finding in looks:
            yield finding
    except OSError as error:
        what = f"{error.filename or settings.data_dir}: {reason(error)}"
        yield Finding(part, what, "Make it readable for this user, or set LIKEWISE_DATA_DIR to another folder.")


def setting_rows() -> list[dict[str, Any]]:
    """Every setting: its variable, default, sentence, and whether it is set. Never its value, which may be a secret."""
    given = {name.upper() for name in (*dotenv_values(ENV_FILE), *os.environ)}
    return [
        {
            "name": PREFIX + name.upper(),
            "default": _default(field.get_default(call_default_factory=True)),
            "description": field.description,
            "set": PREFIX + name.upper() in given,
        }
        for name, field in Settings.model_fields.items()
    ]


def _default(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
