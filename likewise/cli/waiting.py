"""Waiting for vectors, with a word if they will not come."""

import asyncio
from typing import TYPE_CHECKING

from likewise.cli.terminal import note, progress

if TYPE_CHECKING:
    from likewise.library import Likewise

LOOK_SECONDS = 1.0


async def until_embedded(likewise: "Likewise", collection: str, *, quiet: bool) -> str | None:
    """Wait until a collection's texts have their vectors; returns why not, if the model cannot make them."""
    model = (await likewise.collections.get(await likewise.tenant(), collection)).model
    with progress("Embedding", quiet=quiet) as report:
        work = asyncio.create_task(likewise.wait_until_embedded(collection, report))
        try:
            while not (await asyncio.wait({work}, timeout=LOOK_SECONDS))[0]:
                if reason := away(likewise, model):
                    return reason
            await work
        finally:
            work.cancel()
    return None


def away(likewise: "Likewise", model: str) -> str | None:
    """Why a model cannot be used, None if it can or is loading."""
    for state in likewise.embedder.states():
        if state.name == model and state.state in ("absent", "failed"):
            return state.reason or f"The model {model} cannot be used."
    return None


def tell_waiting(reason: str) -> None:
    """The texts are stored and found by their words; vectors come later."""
    note(f"Stored, and found by their words; vectors come when the model is there. {reason}")
