"""Verbs for keys: create, list and revoke API keys; change the text key."""

from datetime import datetime
from functools import partial
from typing import Annotated

import typer

from likewise.auth.caller import Scope
from likewise.cli import rotating
from likewise.cli.names import refuse_no_tenant, refuse_unprintable, scopes_of
from likewise.cli.running import OK, Interruption, run, settings_of_verb
from likewise.cli.terminal import note, say, say_json
from likewise.settings import Settings

MADE_BY = "Keys are made by the owner of the database."

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Tenant = Annotated[str, typer.Option(help="Whom the key is for; a tenant appears with its first key.")]
Name = Annotated[str | None, typer.Option(help="What the key is for, for your own reference.")]
Scopes = Annotated[str, typer.Option(help="What it allows, by comma: read, write, admin.")]
Days = Annotated[int | None, typer.Option(help="Days until it ends by itself; absent: never.", min=1, max=36_500)]

keys = typer.Typer(
    help="API keys: making, listing and revoking them. And the key that texts wait encrypted with.",
    no_args_is_help=True,
)
keys.command("rotate-text")(rotating.rotate_text)


@keys.command()
def create(
    tenant: Tenant, scopes: Scopes = "read,write", name: Name = None, days: Days = None, as_json: AsJson = False
) -> None:
    """Make a key and show it, this once."""
    settings = settings_of_verb()
    granted = scopes_of(scopes)
    refuse_no_tenant(tenant, "--tenant")
    refuse_unprintable(name)
    run(partial(_create, settings=settings, tenant=tenant, scopes=granted, name=name, days=days, as_json=as_json))


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only those of this tenant.")] = None, as_json: AsJson = False
) -> None:
    """Show the keys by their prefixes, with what they allow and when they were used last."""
    run(partial(_list, settings=settings_of_verb(), tenant=tenant, as_json=as_json))


@keys.command()
def revoke(
    prefix: Annotated[str, typer.Argument(help="The part of the key after `lw_`, as `keys list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """End a key."""
    run(partial(_revoke, settings=settings_of_verb(), prefix=prefix, as_json=as_json))


async def _create(
    _: Interruption,
    *,
    settings: Settings,
    tenant: str,
    scopes: frozenset[Scope],
    name: str | None,
    days: int | None,
    as_json: bool,
) -> int:
    from likewise.auth.api_keys import digest_of, new_key  # noqa: PLC0415
    from likewise.cli.opening import opened_as_owner  # noqa: PLC0415
    from likewise.db import keys  # noqa: PLC0415

    key = new_key()
    async with opened_as_owner(settings, MADE_BY) as owner:
        digest = digest_of(key.token)
        await keys.make(owner, tenant, prefix=key.prefix, digest=digest, scopes=scopes, name=name, days=days)
    if as_json:
        say_json({"key": key.token, "prefix": key.prefix, "tenant": tenant, "scopes": sorted(scopes)})
    else:
        # The key alone on stdout, so that a script may take it from there.
        say(key.token)
        note(f"Tenant {tenant}: {', '.join(sorted(scopes))}. Keep it: it is not shown again.")
    return OK


async def _list(_: Interruption, *, settings: Settings, tenant: str | None, as_json: bool) -> int:
    from likewise.cli.opening import opened_as_owner  # noqa: PLC0415
    from likewise.db import keys  # noqa: PLC0415

    async with opened_as_owner(settings, MADE_BY) as owner:
        found = await keys.listed(owner, tenant)
    if as_json:
        say_json({"keys": found})
        return OK
    for row in found:
        state = "revoked" if row.revoked_at else f"used {_day(row.last_used_at)}"
        ends = f"  ends {_day(row.expires_at)}" if row.expires_at else ""
        say(f"{row.prefix}  {row.tenant}  {','.join(row.scopes)}  {row.name or '-'}  {state}{ends}")
    if not found:
        note("There are no keys. `likewise keys create --tenant NAME` makes one.")
    return OK


async def _revoke(_: Interruption, *, settings: Settings, prefix: str, as_json: bool) -> int:
    from likewise.auth.api_keys import REMEMBERED_SECONDS, prefix_of  # noqa: PLC0415
    from likewise.cli.opening import opened_as_owner  # noqa: PLC0415
    from likewise.db import keys  # noqa: PLC0415

    # Somebody may give the whole key, or the part that looks like its beginning.
    wanted = prefix_of(prefix) or prefix.removeprefix("lw_")
    async with opened_as_owner(settings, MADE_BY) as owner:
        await keys.revoke(owner, wanted)
    if as_json:
        say_json({"revoked": wanted, "within_seconds": REMEMBERED_SECONDS})
    else:
        say(f"{wanted} is revoked. A server that has just seen it takes it for {REMEMBERED_SECONDS:.0f} more seconds.")
    return OK


def _day(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
