"""`likewise doctor`: one part after the other, what is found, and the mend if that is a fault."""

import os
from collections.abc import AsyncIterator
from typing import Any

from dotenv import dotenv_values

from likewise.cli.doctor import cache, database, issuer, machine, models
from likewise.cli.doctor.finding import Finding, reason
from likewise.errors import LikewiseError
from likewise.settings import ENV_FILE, PREFIX, Settings, load_settings

__all__ = ["Finding", "findings", "setting_rows"]


async def findings() -> AsyncIterator[Finding]:
    """Look at one part after the other; those that build on a broken one are left out."""
    yield machine.python()
    yield machine.terminal()
    yield machine.processor()
    yield machine.clock()
    try:
        settings = load_settings()
        settings.require_safe_address()
    except LikewiseError as error:
        yield Finding("settings", error.detail, "Set it right; `likewise doctor --settings` lists every setting.")
        return
    yield Finding("settings", "every LIKEWISE_ variable is known and has a fitting value")
    yield machine.folder(settings)
    yield machine.disk(settings)
    async for finding in _attempted("model", models.models(settings), settings):
        yield finding
    async for finding in _attempted("cache", cache.cache(settings), settings):
        yield finding
    async for finding in _attempted("issuer", issuer.issuer(settings), settings):
        yield finding
    async for finding in _attempted("database", database.database(settings), settings):
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
