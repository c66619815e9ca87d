"""`likewise doctor`: look at one part after the other, and print what is found, with the mend of a fault."""

import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer
from dotenv import dotenv_values

from likewise.cli.doctor import database, machine, models, services
from likewise.cli.doctor.finding import Finding, reason
from likewise.cli.running import FAILED, OK, AsJson, run
from likewise.cli.terminal import answer, counted, say
from likewise.errors import LikewiseError
from likewise.observe import logs
from likewise.settings import ENV_FILE, PREFIX, Settings, load_settings


def doctor(
    show_settings: Annotated[bool, typer.Option("--settings", help="List every setting instead.")] = False,
    as_json: AsJson = False,
) -> None:
    # A finding says it in words; settings, which could ask for more, may be what is wrong.
    logs.configure("error")
    if show_settings:
        rows = setting_rows()
        answer({"settings": rows}, *map(_setting_line, rows), as_json=as_json)
    else:
        run(lambda _: _examine(as_json=as_json))


async def _examine(*, as_json: bool) -> int:
    faults = 0
    async for finding in findings():
        faults += finding.mend is not None
        mark = "FAULT" if finding.mend else "ok   "
        mend = [f"       {finding.mend}"] if finding.mend else []
        answer(finding, f"{mark}  {finding.part}: {finding.what}", *mend, as_json=as_json)
    if not as_json:
        say(f"\n{counted(faults, 'fault')}." if faults else "\nNothing is wrong.")
    return FAILED if faults else OK


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
    parts = {
        "model": models.models(settings),
        "cache": services.cache(settings),
        "issuer": services.issuer(settings),
        "database": database.database(settings),
    }
    for part, checks in parts.items():
        async for finding in _attempted(part, checks, settings):
            yield finding


async def _attempted(part: str, checks: AsyncIterator[Finding], settings: Settings) -> AsyncIterator[Finding]:
    """Run checks; one that the file system stops is a finding too."""
    try:
        async for finding in checks:
            yield finding
    except OSError as error:
        what = f"{error.filename or settings.data_dir}: {reason(error)}"
        yield Finding(part, what, "Make it readable for this user, or set LIKEWISE_DATA_DIR to another folder.")


def setting_rows() -> list[dict[str, Any]]:
    """List every setting: variable, default, sentence, whether it is set; never its value, which may be a secret."""
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


def _setting_line(row: dict[str, Any]) -> str:
    return f"{row['name']}{' (set)' if row['set'] else ''}\n    {row['description']} Default: {row['default']}."


def _default(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
