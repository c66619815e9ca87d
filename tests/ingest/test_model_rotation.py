"""Texts that wait for several models, of which not all fit in memory."""

import asyncio
from collections.abc import Mapping

import pytest

import likewise
from likewise.db import collections
from likewise.db.waiting import models as waiting_models
from likewise.embedding.embedder import Embedder
from likewise.kind import NewRecord
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import FakeLoader
from tests.ingest.workers import worker_of
from tests.patience import PATIENCE, until

DEFAULT, FIRST, SECOND = NAMES = ("minilm-l6-v2", "minilm-l12-v2", "multi-qa-minilm")


def embedder_of(settings: Settings, loaders: Mapping[str, FakeLoader], room: int) -> tuple[Settings, Embedder]:
    """An embedder of three models of 100 bytes each."""
    chosen = settings.model_copy(update={"models_allowed": NAMES[1:], "models_bytes": room})
    return chosen, Embedder(chosen, providers=dict(loaders))


async def add(lw: Likewise, model: str, count: int) -> None:
    tenant = await collections.tenant_named(lw.runtime.pool, model)
    await lw.collections.create(tenant, "notes", model=model)
    await lw.collections.write(tenant, "notes", [NewRecord(id=f"{n}", text=f"text {n}") for n in range(count)])


async def left(lw: Likewise, model: str) -> int:
    tenant = await collections.tenant_named(lw.runtime.pool, model)
    return int((await lw.collections.stats(tenant, "notes"))["waiting"])


async def work(lw: Likewise) -> None:
    """Until nothing waits."""
    worker = worker_of(lw, claim_size=4)
    async with asyncio.timeout(PATIENCE):
        while await waiting_models(lw.runtime.pool):
            await worker.step()


@pytest.mark.parametrize(("room", "loads"), [(200, [1, 2, 1]), (300, [1, 1, 1])])
async def test_models_that_do_not_fit_together_take_turns(settings: Settings, room: int, loads: list[int]) -> None:
    # Given many claims for each of two models, and room beside the default for one or for both
    loaders = {name: FakeLoader(100) for name in NAMES}
    chosen, embedder = embedder_of(settings, loaders, room)
    async with likewise.open(chosen, embedder=embedder, worker=False) as lw:
        await embedder.opened()
        for model in (FIRST, SECOND):
            await add(lw, model, 24)
        # When they are worked on
        await work(lw)
        # Then all are done, and each was loaded once, or the first once more
        assert [await left(lw, model) for model in (FIRST, SECOND)] == [0, 0]
        assert [len(loaders[name].made) for name in NAMES] == loads


async def test_no_model_is_kept_from_its_turn(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given room beside the default for one, and turns that are over soon
    monkeypatch.setattr("likewise.ingest.model_rotation.TURN_SECONDS", 0.0)
    loaders = {name: FakeLoader(100) for name in NAMES}
    chosen, embedder = embedder_of(settings, loaders, 200)
    async with likewise.open(chosen, embedder=embedder, worker=False) as lw:
        await embedder.opened()
        for model in (FIRST, SECOND):
            await add(lw, model, 40)
        # When both have more to do than a turn takes
        worker = worker_of(lw, claim_size=4)
        for _ in range(4):
            await worker.step()
        # Then each had its turns
        assert [await left(lw, model) for model in (FIRST, SECOND)] == [32, 32]


async def test_a_model_that_is_busy_elsewhere_holds_up_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a model in the middle of a text for somebody else, in the place of one that texts wait for
    monkeypatch.setattr("likewise.embedding.memory.BUSY_SECONDS", 0.6)
    loaders = {name: FakeLoader(100) for name in NAMES}
    chosen, embedder = embedder_of(settings, loaders, 200)
    async with likewise.open(chosen, embedder=embedder, worker=False) as lw:
        for model in (None, FIRST):
            await embedder.opened(model)
        for model in (DEFAULT, SECOND):
            await add(lw, model, 24)
        gate = loaders[FIRST].made[0].gate = asyncio.Event()
        busy = asyncio.create_task(embedder.embed(1, ["long text"], model=FIRST))
        await until(lambda: loaders[FIRST].made[0].calls)
        # When the worker works, then it tries that one once, and works for the others
        worker = worker_of(lw, claim_size=4)
        for _ in range(6):
            await worker.step()
        assert (await left(lw, DEFAULT), await left(lw, SECOND)) == (0, 24)
        gate.set()
        await busy
        await work(lw)
