"""Verbs for tenants: add, list."""

from functools import partial
from typing import Annotated

import typer

from likewise.cli.names import refuse_no_tenant
from likewise.cli.running import OK, Interruption, run, settings_of_verb
from likewise.cli.terminal import counted, note, say, say_json
from likewise.settings import Settings

MADE_BY = "Tenants are declared by the owner of the database."

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]

tenants = typer.Typer(help="Tenants: declaring and listing them.", no_args_is_help=True)


@tenants.command()
def add(
    name: Annotated[str, typer.Argument(help="Its name, to the letter as a JWT gives it.")], as_json: AsJson = False
) -> None:
    """Declare a tenant; one that is there already stays as it is."""
    settings = settings_of_verb()
    refuse_no_tenant(name)
    run(partial(_add, settings=settings, name=name, as_json=as_json))


@tenants.command("list")
def list_tenants(as_json: AsJson = False) -> None:
    """Show the tenants that there are, declared or not."""
    run(partial(_list, settings=settings_of_verb(), as_json=as_json))


async def _add(_: Interruption, *, settings: Settings, name: str, as_json: bool) -> int:
    from likewise.cli.opening import opened_as_owner  # noqa: PLC0415
    from likewise.db import tenants  # noqa: PLC0415

    async with opened_as_owner(settings, MADE_BY) as owner:
        new = await tenants.declare(owner, name)
    if as_json:
        say_json({"tenant": name, "new": new})
    else:
        say(f"{name} is declared." if new else f"{name} was there already.")
    return OK


async def _list(_: Interruption, *, settings: Settings, as_json: bool) -> int:
    from likewise.cli.opening import opened_as_owner  # noqa: PLC0415
    from likewise.db import tenants  # noqa: PLC0415

    async with opened_as_owner(settings, MADE_BY) as owner:
        found = await tenants.listed(owner)
    if as_json:
        say_json({"tenants": found})
        return OK
    for row in found:
        say(f"{row.name}  since {row.created_at:%Y-%m-%d}  {counted(row.collections, 'collection')}")
    if not found:
        note("There are no tenants. One appears with its first key, or by `likewise tenants add NAME`.")
    return OK
