"""Options that several commands have, and the rule for the names of tenants."""

from typing import Annotated

import typer

from likewise.auth.tenants import MAX_CHARACTERS, is_name

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model, if not the default.")]
CollectionOption = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]


def refuse_no_tenant(name: str | None, option: str | None = None) -> None:
    """Refuse a name that no tenant can have, in a JWT as on the command line; an absent one is no fault."""
    if name is not None and not is_name(name):
        raise typer.BadParameter(f"A tenant's name has 1 to {MAX_CHARACTERS} printable characters.", param_hint=option)
