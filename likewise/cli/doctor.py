"""What `likewise doctor` looks at: each part, what it found, and the mend if that is a fault."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from dotenv import dotenv_values

from likewise.cli.database import oldest_waiting, state_of
from likewise.cli.models import require_runnable, tried
from likewise.errors import LikewiseError, SettingsError
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
    yield _folder(settings)
    yield _disk(settings)
    yield await _attempted("model", _model, settings)
    database = await _attempted("database", _database, settings)
    yield database
    if database.mend is None:
        yield await _attempted("waiting", _waiting, settings)


async def _attempted(part: str, look: Callable[[Settings], Awaitable[Finding]], settings: Settings) -> Finding:
    """What a look finds; one that the file system stops is a finding too."""
    try:
        return await look(settings)
    except OSError as error:
        what = f"{error.filename or settings.data_dir}: {_reason(error)}"
        return Finding(part, what, "Make it readable for this user, or set LIKEWISE_DATA_DIR to another folder.")


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
    except (FileExistsError, NotADirectoryError):
        what = f"{folder}: it, or a folder above it, is a file"
        return Finding("data folder", what, "Set LIKEWISE_DATA_DIR to a folder.")
    except OSError as error:
        return Finding("data folder", f"{folder}: {_reason(error)}", "Make it writable, or set LIKEWISE_DATA_DIR.")
    return Finding("data folder", f"{folder} can be written")


def _disk(settings: Settings) -> Finding:
    places = (settings.data_dir, *settings.data_dir.parents)
    # Unlike Path.exists, this is false where one may not look.
    existing = next(place for place in places if os.path.exists(place))  # noqa: PTH110
    free = shutil.disk_usage(existing).free
    what = f"{free / 2**30:.1f} GiB free"
    return Finding("disk", what, None if free >= LEAST_FREE else "Free at least 1 GiB, or set LIKEWISE_DATA_DIR.")


async def _model(settings: Settings) -> Finding:
    try:
        require_runnable(settings)
    except SettingsError as error:
        return Finding("model", error.detail, "Set LIKEWISE_MODEL to one of these, or unset it for the default.")
    try:
        facts = await tried(settings, None)
    except LikewiseError as error:
        first = "Unset LIKEWISE_OFFLINE, then run" if settings.offline else "Run"
        return Finding("model", error.detail, f"{first} `likewise models pull`; without it only words are searched.")
    return Finding("model", f"{facts['model']} works ({facts['numerics']}, {facts['texts_per_second']:.0f} texts/s)")


async def _database(settings: Settings) -> Finding:
    try:
        state = await state_of(settings)
    except LikewiseError as error:
        return Finding("database", error.detail, _database_mend(settings))
    what = f"{state['database']}, Postgres {state['postgres']}, pgvector {state['pgvector']}"
    if state["missing"]:
        return Finding("database", f"{what}; the schema is behind", "Run `likewise db upgrade`.")
    return Finding("database", f"{what}; the schema is up to date")


def _database_mend(settings: Settings) -> str:
    for name, url in (("URL", settings.database_url), ("SERVING_URL", settings.database_serving_url)):
        if url:
            return f"Mend that, or unset LIKEWISE_DATABASE_{name} for the embedded one."
    return "Mend that; the embedded Postgres logs to `postgres/log` in the data folder."


async def _waiting(settings: Settings) -> Finding:
    try:
        oldest = await oldest_waiting(settings)
    except LikewiseError as error:
        mend = "The role of LIKEWISE_DATABASE_SERVING_URL must be a plain one."
        return Finding("roles", error.detail, mend if settings.database_serving_url else _database_mend(settings))
    what = f"the oldest text without a vector waits {oldest:.0f} s"
    if oldest > OLD_SECONDS:
        return Finding("waiting", what, "Run `likewise worker` or `likewise serve`, and look at the model above.")
    return Finding("waiting", what if oldest else "nothing waits for a vector")


def _reason(error: OSError) -> str:
    return (error.strerror or "cannot be used").lower()
