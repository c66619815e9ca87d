"""Names that are given on the command line: of tenants, of keys, of scopes."""

import typer

from likewise.auth.caller import Scope
from likewise.errors import NotFound

MOST_NAME = 128


def refuse_unprintable(text: str | None) -> None:
    """Wrong usage, unless it is absent or a name of 1 to 128 printable characters."""
    if text is not None and not (text.strip() and text.isprintable() and len(text) <= MOST_NAME):
        raise typer.BadParameter(f"A name has 1 to {MOST_NAME} printable characters.")


def refuse_no_tenant(name: str | None, option: str | None = None) -> None:
    """Wrong usage, unless it is absent or what a tenant may be called, in a JWT as on the command line."""
    from likewise.auth.tenants import MAX_CHARACTERS, is_name  # noqa: PLC0415

    if name is not None and not is_name(name):
        raise typer.BadParameter(f"A tenant's name has 1 to {MAX_CHARACTERS} printable characters.", param_hint=option)


def unknown_tenant() -> NotFound:
    """The error of a name that is no tenant's."""
    return NotFound("There is no tenant of this name. `likewise tenants list` shows those that there are.")


def scopes_of(given: str) -> frozenset[Scope]:
    """The scopes that are named by comma; wrong usage if there are none, or others."""
    try:
        granted = frozenset(Scope(part.strip()) for part in given.split(",") if part.strip())
    except ValueError:
        granted = frozenset()
    if not granted:
        raise typer.BadParameter("Name one or several of read, write and admin, by comma.", param_hint="--scopes")
    return granted
