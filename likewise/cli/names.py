"""Check names that are given on the command line: of tenants and of scopes."""

import typer

from likewise.auth.caller import MAX_NAME_CHARACTERS, Scope, is_name


def refuse_no_tenant(name: str, option: str | None = None) -> None:
    """Refuse a name that no tenant can have, in a JWT as on the command line."""
    if not is_name(name):
        raise typer.BadParameter(
            f"A tenant's name has 1 to {MAX_NAME_CHARACTERS} printable characters.", param_hint=option
        )


def scopes_of(given: str) -> frozenset[Scope]:
    """Read the scopes that are named by comma; refuse none, and others."""
    try:
        granted = frozenset(Scope(part.strip()) for part in given.split(",") if part.strip())
    except ValueError:
        granted = frozenset()
    if not granted:
        raise typer.BadParameter("Name one or several of read, write and admin, by comma.", param_hint="--scopes")
    return granted
