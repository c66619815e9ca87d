"""`likewise tenants`: declare tenants, and list them."""

from typing import Annotated

import typer

from likewise.cli.names import refuse_no_tenant
from likewise.cli.opening import open_as_owner
from likewise.cli.running import AsJson, command_settings, in_loop
from likewise.cli.terminal import answer, answer_list, counted
from likewise.db.tenants import declare, listed

BY_OWNER = "Tenants are declared by the owner of the database."
NONE = "There are no tenants. One appears with its first key, or by `likewise tenants add NAME`."

tenants = typer.Typer()


@tenants.command()
@in_loop
async def add(
    name: Annotated[str, typer.Argument(help="Its name, to the letter as a JWT gives it.")], as_json: AsJson = False
) -> None:
    """Declare a tenant; one that is there already stays as it is."""
    settings = command_settings()
    refuse_no_tenant(name)
    async with open_as_owner(settings, BY_OWNER) as owner:
        new = await declare(owner, name)
    line = f"{name} is declared." if new else f"{name} was there already."
    answer({"tenant": name, "new": new}, line, as_json=as_json)


@tenants.command("list")
@in_loop
async def list_tenants(as_json: AsJson = False) -> None:
    """Show the tenants that there are, declared or not."""
    async with open_as_owner(command_settings(), BY_OWNER) as owner:
        found = await listed(owner)
    answer_list(
        "tenants",
        found,
        lambda row: f"{row.name}  since {row.created_at:%Y-%m-%d}  {counted(row.collections, 'collection')}",
        NONE,
        as_json=as_json,
    )
