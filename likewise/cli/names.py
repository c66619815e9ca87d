"""Names that are given on the command line: of tenants, of keys."""

import typer

MOST_NAME = 128


def refuse_unprintable(text: str | None) -> None:
    """Wrong usage, unless it is absent or a name of 1 to 128 printable characters."""
    if text is not None and not (text.strip() and text.isprintable() and len(text) <= MOST_NAME):
        raise typer.BadParameter(f"A name has 1 to {MOST_NAME} printable characters.")
