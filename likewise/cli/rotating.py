"""`likewise keys rotate-text`: a new key for texts that wait encrypted."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from likewise.cli.running import OK, Interruption, run, settings_of_verb
from likewise.cli.terminal import counted, note, say, say_json
from likewise.progress import progress
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.db.text_key_rotation import RotationOutcome, SealedCounts

BY_OWNER = "The text key is changed by the owner of the database."
WHAT_IS_LOST = (
    "Texts that wait encrypted with a key that is not here are given up, and words of collections that keep no texts "
    "are found no more."
)


def rotate_text(
    lost: Annotated[
        bool, typer.Option("--lost", help="The present key is lost for good: give up what waits encrypted with it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --lost: do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Encrypt what waits with a new text key, in one transaction; servers may run meanwhile."""
    settings = settings_of_verb()
    if lost and not yes:
        _ask()
    run(partial(_rotate, settings=settings, lost=lost, as_json=as_json))


def _ask() -> None:
    note(WHAT_IS_LOST)
    if sys.stdin is None or not sys.stdin.isatty():
        raise typer.BadParameter("Say --yes as well: nobody is here to ask.", param_hint="--lost")
    typer.confirm("Go on?", abort=True, err=True)


async def _rotate(_: Interruption, *, settings: Settings, lost: bool, as_json: bool) -> int:
    from likewise.cli.opening import opened_as_owner  # noqa: PLC0415
    from likewise.db.text_key import source_of  # noqa: PLC0415
    from likewise.db.text_key_rotation import rotate  # noqa: PLC0415

    source = source_of(settings)
    async with opened_as_owner(settings, BY_OWNER) as owner:
        with progress("Encrypting anew", quiet=as_json) as report:
            rotated = await rotate(owner, source, lost=lost, report=report)
    if as_json:
        say_json({"sealed": rotated.sealed, "lost": rotated.lost, "key": source.name})
        return OK
    _tell(rotated)
    if settings.text_key is not None:
        note("Set LIKEWISE_TEXT_KEY to the new key everywhere, and destroy the old one.")
    else:
        note(f"The new key is in {source.name}. Copy it to other machines that serve this database.")
    return OK


def _tell(rotated: "RotationOutcome") -> None:
    say(f"The text key is a new one; encrypted anew: {_in_words(rotated.sealed)}.")
    lost = rotated.lost
    if lost.texts or lost.tasks:
        say(f"Given up: {counted(lost.texts, 'text')}, {counted(lost.tasks, 'task')}.")
    if lost.collections:
        say(
            f"{counted(lost.collections, 'collection')} lost the words of all texts so far, which are found by their "
            "meaning alone. Delete and send them again to have their words back."
        )


def _in_words(counts: "SealedCounts") -> str:
    return (
        f"{counted(counts.texts, 'text')}, {counted(counts.tasks, 'task')}, "
        f"{counted(counts.collections, 'key of words', 'keys of words')}"
    )
