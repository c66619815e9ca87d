"""Waiting for vectors ends when they are there, and when they will not come."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from likewise.cli.opening import until_embedded
from likewise.db import collections
from likewise.library import Likewise
from likewise.vectors.admission import Admission
from tests.patience import PATIENCE


async def waited(likewise: Likewise) -> str | None:
    return await asyncio.wait_for(until_embedded(likewise, "notes", quiet=True), PATIENCE)


async def generation(likewise: Likewise) -> int:
    async with likewise.runtime.pool.tenant(await likewise.tenant()) as tx:
        return (await collections.named(tx, "notes")).active.id


async def test_it_ends_when_all_have_their_vectors(lw: Likewise) -> None:
    await lw.collection("notes").add([{"id": str(n), "text": f"text {n}"} for n in range(20)], wait=False)
    assert await waited(lw) is None
    assert (await lw.collection("notes").stats())["vectors"] == 20


async def test_it_ends_when_the_model_is_not_the_one_of_the_collection(
    open_likewise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: dict[int, str] = {}
    monkeypatch.setattr(Admission, "refused", refused)
    async with open_likewise(worker=False) as idle:
        # Given
        await idle.collection("notes").add([{"id": "1", "text": "x"}], wait=False)
        refused[await generation(idle) + 1] = "Another collection's."
        waiting = asyncio.create_task(waited(idle))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        # When
        refused[await generation(idle)] = "The model reads otherwise."
        # Then
        assert await waiting == "The model reads otherwise."


async def test_it_ends_when_the_settings_do_not_allow_the_model(
    open_likewise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_likewise(worker=False) as idle:
        await idle.collection("notes").add([{"id": "1", "text": "x"}], wait=False)
        monkeypatch.setattr(idle.embedder, "states", list)
        assert "LIKEWISE_MODELS_ALLOWED" in str(await waited(idle))
