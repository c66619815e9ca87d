"""What `likewise doctor` looks at: each part, what it found, and the mend if that is a fault."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from dotenv import dotenv_values

from likewise.cli.database import state_of
from likewise.cli.models import tried
from likewise.errors import LikewiseError
from likewise.library import open as open_likewise
from likewise.settings import ENV_FILE, PREFIX, Settings, load_settings

# The model, its compiled form and an empty database take about 400 MB.
LEAST_FREE = 2**30
OLD_SECONDS = 300.0
_LEAST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One part and what was found; `mend` is None where nothing is wrong."""

    part: str
    what: str
    mend: str | None = None


async def findings() -> AsyncIterator[Finding]:
    """Look at one part after the other; those that build on a broken one are left out."""
    yield _python()
    try:
        settings = load_settings()
        settings.require_safe_address()
    except LikewiseError as error:
        yield Finding("settings", error.detail, "Set it right; `likewise doctor --settings` lists every setting.")
        return
    yield Finding("settings", "every LIKEWISE_ variable is known and has a fitting value")
    for finding in (_folder(settings), _disk(settings)):
        yield finding
    yield await _model(settings)
    database = await _database(settings)
    yield database
    if database.mend is None:
        yield await _waiting(settings)


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
    return str(value).lower() if isinstance(value, bool) else str(value)


def _python() -> Finding:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < _LEAST_PYTHON:
        return Finding("python", found, "Install Python 3.11 or newer.")
    return Finding("python", found)


def _folder(settings: Settings) -> Finding:
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or "cannot be written").lower()
        return Finding("data folder", f"{folder}: {reason}", "Make it writable, or set LIKEWISE_DATA_DIR.")
    return Finding("data folder", f"{folder} can be written")


def _disk(settings: Settings) -> Finding:
    existing = next(place for place in (settings.data_dir, *settings.data_dir.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    what = f"{free / 2**30:.1f} GiB free"
    return Finding("disk", what, None if free >= LEAST_FREE else "Free at least 1 GiB, or set LIKEWISE_DATA_DIR.")


async def _model(settings: Settings) -> Finding:
    try:
        facts = await tried(settings, None)
    except LikewiseError as error:
        return Finding("model", error.detail, "Run `likewise models pull`; without it only words are searched.")
    return Finding("model", f"{facts['model']} works ({facts['numerics']}, {facts['texts_per_second']:.0f} texts/s)")


async def _database(settings: Settings) -> Finding:
    try:
        state = await state_of(settings)
    except LikewiseError as error:
        return Finding("database", error.detail, "Mend that, or unset LIKEWISE_DATABASE_URL for the embedded one.")
    what = f"{state['database']}, Postgres {state['postgres']}, pgvector {state['pgvector']}"
    if state["missing"]:
        return Finding("database", f"{what}; the schema is behind", "Run `likewise db upgrade`.")
    return Finding("database", f"{what}; the schema is up to date")


async def _waiting(settings: Settings) -> Finding:
    try:
        async with open_likewise(settings, worker=False) as likewise:
            health = await likewise.health()
    except LikewiseError as error:
        return Finding("roles", error.detail, "The role of LIKEWISE_DATABASE_SERVING_URL must be a plain one.")
    what = f"the oldest text without a vector waits {health.oldest_waiting:.0f} s"
    if health.oldest_waiting > OLD_SECONDS:
        return Finding("waiting", what, "Run `likewise worker` or `likewise serve`, and look at the model above.")
    return Finding("waiting", what if health.oldest_waiting else "nothing waits for a vector")
