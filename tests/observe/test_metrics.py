"""The numbers at GET /metrics: what they count, who may see them, and that they come whatever else is broken."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

import likewise
from likewise.db.pool import Pool
from likewise.embedding.embedder import Embedder
from likewise.errors import SettingsError
from likewise.library import Likewise
from likewise.server import operations as route
from likewise.settings import Settings, load_settings
from likewise.testing import FakeProvider
from tests.conftest import Opener
from tests.observe.conftest import Samples, risen, scraped
from tests.patience import until
from tests.server.conftest import calling

TOKEN = "a-token-of-a-good-length"
NOTES = "/api/v1/collections/notes"
TIMED = re.compile(r"_(bucket|sum|count)\b")


def counted(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What rose, without how long it took, memory and the scrapes themselves."""
    rose = risen(before, after)
    return {
        name.removeprefix("likewise_"): value
        for name, value in rose.items()
        if not TIMED.search(name) and "_process_" not in name and "_pool_" not in name and '"/metrics"' not in name
    }


async def test_what_happens_is_counted_once(client: httpx2.AsyncClient, shared: Likewise) -> None:
    # Given
    await shared.wait_until_embedded("notes")
    before = await scraped(client)
    # When
    records = [{"id": "b", "text": "one two three"}, {"id": "c", "text": "é"}]
    await client.post(f"{NOTES}/records", json=records)
    await shared.wait_until_embedded("notes")
    await client.post(f"{NOTES}/search", json={"query": "one two", "mode": "dense", "limit": 2})
    await client.post(f"{NOTES}/search", json={"query": "one two", "mode": "dense", "limit": 2})
    await client.get("/nowhere/at/all")
    # Then
    rose = counted(before, await scraped(client))
    template = "/api/v1/collections/{name}"
    assert rose.pop('ingest_records_total{outcome="created"}') == 2
    assert rose.pop("ingest_text_bytes_total") == len("one two three") + 2
    assert rose.pop('worker_contents_total{outcome="embedded"}') == 2
    assert rose.pop("worker_claims_total") >= 1
    assert rose.pop(f'http_requests_total{{method="POST",route="{template}/records",status="2xx"}}') == 1
    assert rose.pop(f'http_requests_total{{method="POST",route="{template}/search",status="2xx"}}') == 2
    assert rose.pop('http_requests_total{method="GET",route="none",status="4xx"}') == 1
    assert rose.pop('search_requests_total{mode="dense",outcome="ok"}') == 2
    assert rose.pop('search_results_total{mode="dense"}') == 4
    assert rose.pop('search_plans_total{plan="scan"}') == 2
    # The second query was known; the worker's two texts and the first query were not.
    assert rose.pop('cache_hits_total{tier="memory"}') == 1
    assert rose.pop("cache_misses_total") == 3
    assert rose.pop('embed_texts_total{lane="interactive",model="minilm-l6-v2"}') == 2
    assert rose.pop('embed_texts_total{lane="bulk",model="minilm-l6-v2"}') == 2
    assert rose.pop('model_tokens_total{lane="bulk",model="minilm-l6-v2"}') == 3 + 1 + 2 * 2


async def test_what_texts_cost_is_told_by_model(settings: Settings) -> None:
    # Given a remote model that does not say how many tokens it read
    settings = settings.model_copy(update={"model": "text-embedding-3-small"})
    embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider(1536, estimated=True)})
    async with likewise.open(settings, worker=False, embedder=embedder) as lw, calling(lw) as client:
        before = await scraped(client)
        # When 5 tokens are read, and known twice
        for _ in range(3):
            await lw.embed(["one two three"])
        # Then
        rose = counted(before, await scraped(client))
    model = '{model="text-embedding-3-small"}'
    assert rose[f"embed_cost_dollars_total{model}"] == pytest.approx(5 * 2e-8)
    assert rose[f"embed_cost_avoided_dollars_total{model}"] == pytest.approx(10 * 2e-8)
    assert rose[f"embed_estimated_tokens_total{model}"] == 5


async def test_the_state_of_the_parts_is_told(client: httpx2.AsyncClient, shared: Likewise) -> None:
    await shared.wait_until_embedded("notes")
    seen = await scraped(client)
    assert seen["likewise_database_up"] == 1
    assert seen["likewise_storage_fault"] == 0
    assert seen['likewise_model_state{model="minilm-l6-v2",state="ready"}'] == 1
    assert seen['likewise_model_state{model="minilm-l6-v2",state="failed"}'] == 0
    assert seen["likewise_cache_bytes"] > 0
    assert seen["likewise_pool_connections_max"] == shared.settings.database_connections
    assert seen["likewise_process_resident_memory_bytes"] > 2**20
    assert any(name.startswith("likewise_build_info{version=") for name in seen)


async def test_every_label_is_of_a_closed_set(client: httpx2.AsyncClient) -> None:
    # When: callers choose methods, paths, models, modes and names
    await client.request("BREW", "/canary")
    await client.get("/api/v1/collections/canary/records/canary?canary=canary")
    await client.post(f"{NOTES}/search", json={"query": "x", "mode": "canary"})
    await client.post("/api/v1/collections", json={"name": "canary", "model": "canary"})
    # Then
    text = (await client.get("/metrics")).text
    assert "canary" not in text
    assert "BREW" not in text
    assert 'method="other",route="none"' in text


async def test_the_queue_is_told_by_model(open_likewise: Opener, provider: FakeProvider) -> None:
    # Given: texts wait, and nobody embeds them
    async with open_likewise(worker=False) as lw, calling(lw) as client:
        await lw.collection("notes").add([{"id": "1", "text": "one"}], wait=False)
        await asyncio.sleep(0.01)
        # When
        seen = await scraped(client)
    # Then
    assert seen['likewise_queue_oldest_waiting_seconds{model="minilm-l6-v2"}'] > 0
    assert "likewise_queue_waiting" in seen


async def test_failures_are_told_apart(open_likewise: Opener, provider: FakeProvider) -> None:
    async with open_likewise() as lw, calling(lw) as client:
        notes = lw.collection("notes")
        await notes.add([{"id": "1", "text": "one"}])
        before = await scraped(client)
        # When
        await client.post(f"{NOTES}/search", json={"query": " ", "mode": "dense"})
        await client.post(f"{NOTES}/search", json={"like": "not there"})
        provider.poison = lambda text: "two" in text
        await client.post(f"{NOTES}/records", content='{"id": "2"}\n{"id": "3", "text": "two"}\n', headers=NDJSON)
        await until(lambda: failed_since(before, client))
        # Then
        rose = counted(before, await scraped(client))
    assert rose['search_requests_total{mode="hybrid",outcome="refused"}'] == 1
    assert rose['ingest_records_total{outcome="refused"}'] == 1
    assert rose['worker_contents_total{outcome="failed"}'] >= 1


NDJSON = {"content-type": "application/x-ndjson"}


async def failed_since(before: Samples, client: httpx2.AsyncClient) -> bool:
    return 'likewise_worker_contents_total{outcome="failed"}' in risen(before, await scraped(client))


@pytest.mark.parametrize("how", ["hangs", "gone"])
async def test_a_database_that_is_away_costs_its_own_numbers_only(
    open_likewise: Opener, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with open_likewise() as lw, calling(lw) as client:
        # Given
        await lw.tenant()
        monkeypatch.setattr(route, "ASK_SECONDS", 0.05)
        if how == "gone":
            await lw.runtime.pool.close()
        else:
            monkeypatch.setattr(Pool, "nobody", hangs)
        # When
        seen = await scraped(client)
        monkeypatch.undo()
    # Then
    assert seen["likewise_database_up"] == 0
    assert "likewise_queue_waiting" not in seen
    assert "likewise_process_cpu_seconds_total" in seen


@asynccontextmanager
async def hangs(_: Pool) -> AsyncIterator[None]:
    await asyncio.sleep(60)
    yield


async def test_many_scrapes_are_one_question(open_likewise: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_likewise(worker=False) as lw, calling(lw) as client:
        asked = 0
        real = route.waiting.models

        async def counting(pool: Pool) -> dict[str, float]:
            nonlocal asked
            asked += pool is lw.runtime.pool
            return await real(pool)

        monkeypatch.setattr(route.waiting, "models", counting)
        await asyncio.gather(*(scraped(client) for _ in range(20)))
    assert asked == 1


@pytest.fixture
async def guarded(shared: Likewise, shared_settings: Settings) -> AsyncIterator[Any]:
    """Opens a client of a server that asks who calls, with or without a token for its metrics."""

    @asynccontextmanager
    async def opened(token: str | None) -> AsyncIterator[httpx2.AsyncClient]:
        asking = shared_settings.model_copy(update={"auth": ("keys",), "metrics_token": token})
        before, shared.settings = shared.settings, asking
        try:
            async with calling(shared) as client:
                yield client
        finally:
            shared.settings = before

    return opened


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (TOKEN, 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer \u00fc".encode("latin-1"), 401),
        (None, 401),
    ],
)
async def test_where_callers_need_a_credential_metrics_need_their_token(
    guarded: Any, sent: str | bytes | None, status: int
) -> None:
    async with guarded(TOKEN) as client:
        answer = await client.get("/metrics", headers=[] if sent is None else [("authorization", sent)])
    assert answer.status_code == status
    assert TOKEN not in answer.text
    if status == 401:
        assert "LIKEWISE_METRICS_TOKEN" in answer.json()["detail"]


async def test_without_a_token_metrics_are_closed_and_say_which_setting_opens_them(guarded: Any) -> None:
    async with guarded(None) as client:
        answer = await client.get("/metrics", headers={"authorization": "Bearer None"})
    assert answer.status_code == 404
    assert "LIKEWISE_METRICS_TOKEN" in answer.json()["detail"]


async def test_the_default_tenant_of_loopback_needs_none(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_short_token_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="LIKEWISE_METRICS_TOKEN") as refused:
        load_settings(metrics_token="short-canary")
    assert "canary" not in refused.value.detail
    assert TOKEN not in repr(load_settings(metrics_token=TOKEN))


async def test_the_page_on_metrics_has_every_one(client: httpx2.AsyncClient) -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text("utf-8")
    told = re.findall(r"^# TYPE (\w+) ", (await client.get("/metrics")).text, re.MULTILINE)
    assert len(told) == len(set(told)) > 30
    assert [name for name in told if f"`{name}`" not in page and "_process_" not in name] == []
