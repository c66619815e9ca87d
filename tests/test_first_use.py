"""A program on a machine without the model: it waits for the fetch, sees it, and hears what to do if that fails."""

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

import likewise
from likewise.apps.embed import EmbedderService, EmbeddingAdapter
from likewise.embedding.files import hub, weights, wheel
from likewise.embedding.models import MODELS, ModelSpec
from likewise.errors import ModelUnavailable, Unavailable
from likewise.library import Likewise
from likewise.progress import Report
from likewise.server.app import create_app
from likewise.settings import Settings, load_settings
from likewise.testing import DatabaseUrls
from tests.patience import PATIENCE, until

NOTES = [{"id": "1", "text": "the pump fails when it is cold"}, {"id": "2", "text": "invoices are sent monthly"}]


class SlowFetch:
    """A hub whose files come once the test says so; `fails` says that they never do."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self.begun, self.may_end, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.fails = False
        self.times = 0

    def __call__(self, spec: ModelSpec, into: Path, progress: Report) -> None:
        self.times += 1
        self.begun.set()
        try:
            while not self.may_end.is_set():
                progress(20 << 20, 90 << 20)
                time.sleep(0.01)
            if self.fails:
                raise ModelUnavailable("not to be fetched from the hub (ConnectError)")
            shutil.copytree(self._source, into, dirs_exist_ok=True)
        finally:
            self.ended.set()


@pytest.fixture
def fetch(real_models: Path, monkeypatch: pytest.MonkeyPatch) -> SlowFetch:
    """The one way to the model on a machine that has it nowhere."""
    source = weights.locate(MODELS[0], load_settings(models_dir=real_models))
    assert source is not None
    slow = SlowFetch(source)
    monkeypatch.setattr(hub, "download", slow)
    return slow


@pytest.fixture
def settings(database: DatabaseUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a machine with a network and without the model."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(wheel, "installed_folder", lambda spec: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return load_settings(
        data_dir=tmp_path / "data",
        database_url=database.owner,
        database_serving_url=database.serving,
        offline=False,
    )


@pytest.fixture
async def program(settings: Settings, fetch: SlowFetch) -> AsyncIterator[Likewise]:
    """The library as a program opens it, with the fetch under way."""
    async with likewise.open(settings) as lw:
        assert await asyncio.to_thread(fetch.begun.wait, PATIENCE)
        yield lw


async def still_runs(task: "asyncio.Future[Any]", *, seconds: float = 0.3) -> None:
    done, _ = await asyncio.wait({task}, timeout=seconds)
    assert not done


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda lw: lw.embed(["a pump"]), id="embed"),
        pytest.param(lambda lw: lw.collection("notes").add(NOTES), id="add"),
        pytest.param(lambda lw: lw.collection("notes").search("freezing breaks the pump"), id="search"),
    ],
)
async def test_a_program_waits_for_a_model_that_is_being_fetched(
    program: Likewise, fetch: SlowFetch, call: Callable[[Likewise], "asyncio.Future[object]"]
) -> None:
    # Given a collection, and a model that is on its way
    await program.collection("notes").add(NOTES, wait=False)
    # When two callers at once ask for what needs it
    tasks = [asyncio.ensure_future(call(program)) for _ in range(2)]
    for task in tasks:
        await still_runs(task)
    fetch.may_end.set()
    # Then both are answered, by one fetch
    await asyncio.gather(*tasks)
    assert fetch.times == 1


async def test_a_search_in_a_program_is_by_meaning_on_the_first_day_too(program: Likewise, fetch: SlowFetch) -> None:
    # Given records that wait for a model which is on its way
    await program.collection("notes").add(NOTES, wait=False)
    search = asyncio.ensure_future(program.collection("notes").search("freezing breaks the pump"))
    await still_runs(search)
    # When it comes
    fetch.may_end.set()
    # Then the search has not made do with words
    assert (await search).degraded == ()
    added = await program.collection("notes").add(NOTES)
    assert (added.unchanged, added.failed) == (2, [])
    assert (await program.collection("notes").search("freezing breaks the pump")).hits[0].id == "1"


async def test_a_fetch_that_fails_says_in_a_line_what_to_do(
    program: Likewise, fetch: SlowFetch, settings: Settings
) -> None:
    # Given callers who wait
    fetch.fails = True
    tasks = [
        asyncio.ensure_future(program.embed(["a pump"])),
        asyncio.ensure_future(program.collection("n").add(NOTES)),
    ]
    await still_runs(tasks[0])
    # When the fetch fails
    fetch.may_end.set()
    # Then each hears where was looked, where the files belong, and which command brings them
    for task in tasks:
        with pytest.raises(ModelUnavailable) as failed:
            await task
        assert "\n" not in str(failed.value)
        assert f"put them in {settings.models_folder}" in str(failed.value)
        assert "`likewise models pull minilm-l6-v2` where there is a network" in str(failed.value)
    # And so does who comes after, at once
    with pytest.raises(ModelUnavailable, match="likewise models pull"):
        await program.embed(["a pump"])
    assert fetch.times == 1


async def test_who_gives_up_leaves_the_fetch_to_the_others(program: Likewise, fetch: SlowFetch) -> None:
    # Given two who wait
    gives_up, stays = (asyncio.ensure_future(program.embed(["a pump"])) for _ in range(2))
    await still_runs(gives_up)
    # When one is cancelled
    gives_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gives_up
    await still_runs(stays, seconds=0.1)
    # Then the other has its model
    fetch.may_end.set()
    assert (await stays).vectors.shape == (1, 384)


async def test_a_program_that_ends_ends_its_fetch(settings: Settings, fetch: SlowFetch) -> None:
    with pytest.raises(TimeoutError):
        async with likewise.open(settings) as lw, asyncio.timeout(1):
            await lw.embed(["a pump"])
    assert await asyncio.to_thread(fetch.ended.wait, PATIENCE)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda lw: lw.embed(["a pump"]), id="embed"),
        pytest.param(lambda lw: lw.collection("notes").add(NOTES), id="add"),
        pytest.param(lambda lw: lw.collection("notes").search("a pump", mode="dense"), id="search"),
    ],
)
async def test_who_waits_for_a_model_when_the_program_closes_hears_of_it(
    settings: Settings, fetch: SlowFetch, call: Callable[[Likewise], "asyncio.Future[object]"]
) -> None:
    # Given a task that waits for a model which is on its way
    async with likewise.open(settings) as lw:
        await lw.collection("notes").add(NOTES, wait=False)
        waiting = asyncio.ensure_future(call(lw))
        await still_runs(waiting)
        # When Likewise is closed beside it
    # Then it does not wait for ever
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, PATIENCE)
    # And neither does who comes afterwards
    with pytest.raises(ModelUnavailable, match="shutting down"):
        await asyncio.wait_for(lw.embedder.embed(1, ["a pump"]), PATIENCE)
    assert fetch.times == 1


async def test_an_adapter_waits_for_a_model_that_is_being_fetched(settings: Settings, fetch: SlowFetch) -> None:
    # Given a program without a loop that makes one
    making = asyncio.ensure_future(asyncio.to_thread(EmbeddingAdapter, settings))
    await begun(fetch, making)
    # When the model comes
    fetch.may_end.set()
    adapter = await making
    # Then it works
    assert (await asyncio.to_thread(adapter.embed, ["a pump"])).shape == (1, 384)
    await asyncio.to_thread(adapter.close)
    assert fetch.times == 1


async def test_an_adapter_whose_model_cannot_be_fetched_is_none(settings: Settings, fetch: SlowFetch) -> None:
    fetch.fails = True
    making = asyncio.ensure_future(asyncio.to_thread(EmbeddingAdapter, settings))
    await begun(fetch, making)
    fetch.may_end.set()
    with pytest.raises(ModelUnavailable, match="likewise models pull minilm-l6-v2"):
        await making


async def test_an_embedder_service_waits_for_a_model_that_is_being_fetched(
    settings: Settings, fetch: SlowFetch
) -> None:
    async with EmbedderService(settings=settings) as service:
        # Given one that has been asked for another model, which it does not fetch
        with pytest.raises(ModelUnavailable, match="bge-small"):
            await service.embed_text("a pump", model="bge-small")
        assert fetch.times == 0
        # When two callers at once ask for the default one
        calls = [asyncio.ensure_future(service.embed_text("a pump")), asyncio.ensure_future(service.embed_batch(["a"]))]
        await begun(fetch, *calls)
        fetch.may_end.set()
        # Then both are answered, by one fetch
        await asyncio.gather(*calls)
        assert fetch.times == 1


async def begun(fetch: SlowFetch, *waiting: "asyncio.Future[Any]") -> None:
    """The fetch has begun, and those who wait for it still do."""
    await until(lambda: fetch.begun.is_set() or any(one.done() for one in waiting))
    for one in waiting:
        await still_runs(one, seconds=0.1)


async def test_without_a_terminal_one_line_tells_of_the_fetch(
    settings: Settings, fetch: SlowFetch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch.may_end.set()
    async with likewise.open(settings) as lw:
        await lw.embed(["a pump"])
    assert capsys.readouterr().err.splitlines() == ["Fetching minilm-l6-v2, which is kept for the next time."]


async def test_a_server_refuses_at_once_while_the_model_is_being_fetched(settings: Settings, fetch: SlowFetch) -> None:
    # Given a server whose model is on its way
    async with likewise.open(settings, wait_for_models=False) as lw:
        assert await asyncio.to_thread(fetch.begun.wait, PATIENCE)
        transport = httpx2.ASGITransport(create_app(lw, lw.settings))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            # When it is asked, then it answers, and does not wait
            body = {"input": "a pump", "model": "minilm-l6-v2"}
            refused = await client.post("/v1/embeddings", json=body)
            assert refused.status_code == 503
            assert "is being fetched" in refused.text
            assert not fetch.ended.is_set()
            # When the model has come, then it serves
            fetch.may_end.set()
            await until(lw.embedder.is_ready)
            assert (await client.post("/v1/embeddings", json=body)).status_code == 200
