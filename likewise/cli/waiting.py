"""Waiting for vectors, with a word if they will not come."""

import asyncio
from typing import TYPE_CHECKING

from likewise.cli.terminal import note
from likewise.progress import progress

if TYPE_CHECKING:
    from likewise.db.collections import Generation
    from likewise.library import Likewise


async def until_embedded(likewise: "Likewise", collection: str, *, quiet: bool) -> str | None:
    """Wait until a collection's texts have their vectors; returns why not, if the model cannot make them."""
    from likewise.db import collections, waiting  # noqa: PLC0415
    from likewise.library import FIRST_LOOK_SECONDS, LOOK_SECONDS  # noqa: PLC0415

    tenant = await likewise.tenant()
    total = (await likewise.collections.stats(tenant, collection))["contents"]
    pause = FIRST_LOOK_SECONDS
    with progress("Embedding", quiet=quiet) as report:
        while True:
            async with likewise.runtime.pool.tenant(tenant) as tx:
                generation = (await collections.named(tx, collection)).active
                left = await waiting.count(tx, generation.id)
            report(max(total - left, 0), total)
            if left == 0:
                return None
            if reason := away(likewise, generation):
                return reason
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS)


def away(likewise: "Likewise", generation: "Generation") -> str | None:
    """Why vectors will not come in this process, None if they can or the model is loading."""
    if refused := likewise.runtime.admission.refused.get(generation.id):
        return refused
    for state in likewise.embedder.states():
        if state.name == generation.model:
            gone = state.state in ("absent", "failed")
            return (state.reason or f"The model {state.name} cannot be used.") if gone else None
    return f"The settings do not allow the model {generation.model}; name it in LIKEWISE_MODELS_ALLOWED."


def tell_waiting(reason: str) -> None:
    """The texts are stored and found by their words; vectors come later."""
    note(f"Stored, and found by their words; vectors come when the model is there. {reason}")
