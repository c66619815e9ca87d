"""`likewise keys`: API keys, and the text key."""

import sys
from datetime import datetime
from typing import Annotated

import typer

from likewise.auth.api_keys import REMEMBERED_SECONDS, digest_of, new_key, prefix_of
from likewise.cli.names import refuse_no_tenant, scopes_of
from likewise.cli.opening import open_as_owner
from likewise.cli.running import AsJson, command_settings, in_loop, run
from likewise.cli.terminal import answer, answer_list, counted, note, say, say_json
from likewise.db import keys as key_rows
from likewise.db.text_key import source_of
from likewise.db.text_key_rotation import RotationOutcome, SealedCounts, rotate
from likewise.progress import progress
from likewise.settings import Settings

MAX_NAME = 128
BY_OWNER = "Keys are made by the owner of the database."
TEXT_KEY_BY_OWNER = "The text key is changed by the owner of the database."
NONE = "There are no keys. `likewise keys create --tenant NAME` makes one."
LOSSES = (
    "Texts that wait encrypted with a key that is not here are given up, and words of collections that keep no texts "
    "are found no more."
)

keys = typer.Typer()


@keys.command("rotate-text")
def rotate_text(
    lost: Annotated[
        bool, typer.Option("--lost", help="The present key is lost for good: give up what waits encrypted with it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --lost: do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Encrypt what waits with a new text key, in one transaction; servers may run meanwhile."""
    settings = command_settings()
    if lost and not yes:
        note(LOSSES)
        if sys.stdin is None or not sys.stdin.isatty():
            raise typer.BadParameter("Say --yes as well: nobody is here to ask.", param_hint="--lost")
        typer.confirm("Go on?", abort=True, err=True)
    run(lambda _: _rotate(settings, lost=lost, as_json=as_json))


@keys.command()
@in_loop
async def create(
    tenant: Annotated[str, typer.Option(help="Whom the key is for; a tenant appears with its first key.")],
    scopes: Annotated[str, typer.Option(help="What it allows, by comma: read, write, admin.")] = "read,write",
    name: Annotated[str | None, typer.Option(help="What the key is for, for your own reference.")] = None,
    days: Annotated[
        int | None, typer.Option(help="Days until it ends by itself; absent: never.", min=1, max=36_500)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once."""
    settings = command_settings()
    granted = scopes_of(scopes)
    refuse_no_tenant(tenant, "--tenant")
    if name is not None and not (name.strip() and name.isprintable() and len(name) <= MAX_NAME):
        raise typer.BadParameter(f"A name has 1 to {MAX_NAME} printable characters.")
    key = new_key()
    async with open_as_owner(settings, BY_OWNER) as owner:
        digest = digest_of(key.token)
        await key_rows.make(owner, tenant, prefix=key.prefix, digest=digest, scopes=granted, name=name, days=days)
    facts = {"key": key.token, "prefix": key.prefix, "tenant": tenant, "scopes": sorted(granted)}
    # The key alone on stdout, so that a script may take it from there.
    answer(facts, key.token, as_json=as_json)
    if not as_json:
        note(f"Tenant {tenant}: {', '.join(sorted(granted))}. Keep it: it is not shown again.")


@keys.command("list")
@in_loop
async def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only those of this tenant.")] = None, as_json: AsJson = False
) -> None:
    """Show the keys by their prefixes, with what they allow and when they were used last."""
    async with open_as_owner(command_settings(), BY_OWNER) as owner:
        found = await key_rows.listed(owner, tenant)
    answer_list("keys", found, _line, NONE, as_json=as_json)


@keys.command()
@in_loop
async def revoke(
    prefix: Annotated[str, typer.Argument(help="The part of the key after `lw_`, as `keys list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """End a key."""
    # Somebody may give the whole key, or the part that looks like its beginning.
    wanted = prefix_of(prefix) or prefix.removeprefix("lw_")
    async with open_as_owner(command_settings(), BY_OWNER) as owner:
        await key_rows.revoke(owner, wanted)
    line = f"{wanted} is revoked. A server that has just seen it takes it for {REMEMBERED_SECONDS:.0f} more seconds."
    answer({"revoked": wanted, "within_seconds": REMEMBERED_SECONDS}, line, as_json=as_json)


async def _rotate(settings: Settings, *, lost: bool, as_json: bool) -> None:
    source = source_of(settings)
    async with open_as_owner(settings, TEXT_KEY_BY_OWNER) as owner:
        with progress("Encrypting anew", quiet=as_json) as report:
            rotated = await rotate(owner, source, lost=lost, report=report)
    if as_json:
        say_json({"sealed": rotated.sealed, "lost": rotated.lost, "key": source.name})
        return
    _print_rotated(rotated)
    if settings.text_key is not None:
        note("Set LIKEWISE_TEXT_KEY to the new key everywhere, and destroy the old one.")
    else:
        note(f"The new key is in {source.name}. Copy it to other machines that serve this database.")


def _print_rotated(rotated: RotationOutcome) -> None:
    say(f"The text key is a new one; encrypted anew: {_in_words(rotated.sealed)}.")
    lost = rotated.lost
    if lost.texts or lost.tasks:
        say(f"Given up: {counted(lost.texts, 'text')}, {counted(lost.tasks, 'task')}.")
    if lost.collections:
        say(
            f"{counted(lost.collections, 'collection')} lost the words of all texts so far, which are found by their "
            "meaning alone. Delete and send them again to have their words back."
        )


def _in_words(counts: SealedCounts) -> str:
    return (
        f"{counted(counts.texts, 'text')}, {counted(counts.tasks, 'task')}, "
        f"{counted(counts.collections, 'key of words', 'keys of words')}"
    )


def _line(row: key_rows.KeyRow) -> str:
    state = "revoked" if row.revoked_at else f"used {_minute(row.last_used_at)}"
    ends = f"  ends {_minute(row.expires_at)}" if row.expires_at else ""
    return f"{row.prefix}  {row.tenant}  {','.join(row.scopes)}  {row.name or '-'}  {state}{ends}"


def _minute(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
