"""`likewise db purge`: what was deleted leaves the files of the database too."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from likewise.cli.running import OK, PARTLY, Interruption, run, settings_of_verb
from likewise.cli.terminal import counted, note, say, say_json
from likewise.progress import progress
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.db.purge import PurgeOutcome

MIB = 2**20


def purge(as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False) -> None:
    """Make what was deleted absent from the database's files. Each table is locked while it is written anew."""
    run(partial(_purge, settings=settings_of_verb(), as_json=as_json))


async def _purge(_: Interruption, *, settings: Settings, as_json: bool) -> int:
    from likewise.db.purge import purge as purged_by  # noqa: PLC0415
    from likewise.errors import SettingsError  # noqa: PLC0415
    from likewise.postgres.server import DATABASE  # noqa: PLC0415
    from likewise.runtime import open_database  # noqa: PLC0415

    async with open_database(settings) as database:
        if database.owner_url is None:
            raise SettingsError("What was deleted is purged by the owner of the database. Set LIKEWISE_DATABASE_URL.")
        if not as_json:
            note("Every table is written anew, one after the other, and locked for as long as that takes.")
        superuser = None if database.server is None else database.server.superuser_url(DATABASE)
        with progress("Purging (tables)", quiet=as_json) as report:
            purged = await purged_by(database.owner_url, superuser, report=report)
    if as_json:
        say_json(purged)
    else:
        _tell(purged)
    is_whole = not purged.busy and (superuser is None or not purged.unreached)
    return OK if is_whole else PARTLY


def _tell(purged: "PurgeOutcome") -> None:
    say(
        f"{counted(purged.tables, 'table')} written anew: "
        f"{purged.bytes_before / MIB:.1f} MiB before, {purged.bytes_after / MIB:.1f} MiB now."
    )
    if purged.busy:
        say(f"Others were at these all the time, run this again: {', '.join(purged.busy)}.")
    for part in purged.unreached:
        say(f"Not reached: {part}.")
    say(f"Beyond this: {'; '.join(purged.elsewhere)}.")
