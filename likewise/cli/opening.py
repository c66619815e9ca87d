"""Open what commands work with: the library and the database; and wait for vectors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from likewise.backoff import Backoff
from likewise.cli.models import require_reranker, require_runnable
from likewise.cli.terminal import note
from likewise.db import collections, waiting
from likewise.db.collections import Generation
from likewise.db.pool import Pool
from likewise.db.tenants import known as tenant_of
from likewise.errors import NotFound, SettingsError
from likewise.progress import progress
from likewise.runtime import open_database
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.library import Likewise

# A few texts are done in an instant; many need not be counted more often than each second.
LOOK_AGAIN = Backoff(0.05, 1.0)


def open_library(
    settings: Settings, *, worker: bool, wait_for_models: bool = True
) -> AbstractAsyncContextManager["Likewise"]:
    """Open the library for as long as the context lasts; one that serves others does not wait for models."""
    # Imported here: commands that need only the database start a quarter of a second sooner.
    from likewise import library  # noqa: PLC0415

    require_runnable(settings)
    require_reranker(settings)
    return library.open(settings, worker=worker, wait_for_models=wait_for_models)


@asynccontextmanager
async def open_as_owner(settings: Settings, why: str) -> AsyncIterator[Pool]:
    """Open the database as its owner, for what the role that serves may not do; SettingsError if nobody knows it."""
    async with open_database(settings) as database:
        if database.owner_url is None:
            raise SettingsError(f"{why} Set LIKEWISE_DATABASE_URL.")
        async with _one_connection(database.owner_url) as pool:
            yield pool


@asynccontextmanager
async def open_to_serve(settings: Settings) -> AsyncIterator[Pool]:
    """Open the database as the role that serves."""
    async with open_database(settings) as database, _one_connection(database.serving_url) as pool:
        yield pool


@asynccontextmanager
async def _one_connection(url: str) -> AsyncIterator[Pool]:
    pool = await Pool(url, max_size=1).open()
    try:
        yield pool
    finally:
        await pool.close()


async def tenant_id(owner: Pool, name: str) -> int:
    """Look up a tenant by its name; NotFound if there is none."""
    number = await tenant_of(owner, name)
    if number is None:
        raise NotFound("There is no tenant of this name. `likewise tenants list` shows those that there are.")
    return number


async def until_embedded(likewise: "Likewise", collection: str, *, quiet: bool) -> str | None:
    """Wait until a collection's texts have their vectors; returns why not, if the model cannot make them."""
    tenant = await likewise.tenant()
    total = (await likewise.collections.stats(tenant, collection))["contents"]
    with progress("Embedding", quiet=quiet) as report:
        for pause in LOOK_AGAIN.pauses():
            async with likewise.runtime.pool.tenant(tenant) as tx:
                generation = (await collections.named(tx, collection)).active
                left = await waiting.count(tx, generation.id)
            report(max(total - left, 0), total)
            if left == 0:
                return None
            if reason := _why_never(likewise, generation):
                return reason
            await asyncio.sleep(pause)
    return None


def _why_never(likewise: "Likewise", generation: Generation) -> str | None:
    """Say why vectors will not come in this process; None if they can, or the model is loading."""
    if refused := likewise.runtime.admission.refused.get(generation.id):
        return refused
    for state in likewise.embedder.states():
        if state.name == generation.model:
            gone = state.state in ("absent", "failed")
            return (state.reason or f"The model {state.name} cannot be used.") if gone else None
    return f"The settings do not allow the model {generation.model}; name it in LIKEWISE_MODELS_ALLOWED."


def note_waiting(reason: str) -> None:
    """Note that the texts are stored and found by their words, and that vectors come later."""
    note(f"Stored, and found by their words; vectors come when the model is there. {reason}")
