"""What embedding took: counted to the last text, shown to its own tenant, and counted anew when asked."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx2
import pytest

import likewise
from likewise.auth.caller import Scope
from likewise.embedding.costs import Usage, UsageAccount
from likewise.embedding.embedder import Embedder
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import FakeProvider
from tests.auth.keys import make_key
from tests.conftest import Opener
from tests.patience import until
from tests.server.conftest import calling

METRICS, RESET, USAGE = "/embed/metrics", "/embed/metrics/reset", "/api/v1/usage"
PER_TOKEN = 0.00002 / 1000
HOUR = timedelta(hours=1)


@pytest.fixture
async def client(lw: Likewise) -> AsyncIterator[httpx2.AsyncClient]:
    """Calls the test's own Likewise."""
    async with calling(lw) as calls:
        yield calls


@pytest.fixture
def priced(settings: Settings) -> Settings:
    """Settings with a remote model as the default."""
    return settings.model_copy(update={"model": "text-embedding-3-small"})


def remote(settings: Settings, **knobs: Any) -> Embedder:
    """An embedder whose remote model is the deterministic one."""
    return Embedder(settings, providers={settings.model: lambda spec: FakeProvider(1536, **knobs)})


async def metrics(client: httpx2.AsyncClient, **headers: str) -> dict[str, Any]:
    answer = await client.get(METRICS, headers=headers)
    assert answer.status_code == 200, answer.text
    counted: dict[str, Any] = answer.json()["metrics"]
    return counted


async def total(client: httpx2.AsyncClient, **parameters: str) -> dict[str, Any]:
    answer = await client.get(USAGE, params=parameters)
    assert answer.status_code == 200, answer.text
    sums: dict[str, Any] = answer.json()["total"]
    return sums


async def test_a_text_is_paid_once_and_then_known(client: httpx2.AsyncClient) -> None:
    # Given
    assert (await metrics(client))["cache_hit_rate"] == 0.0
    # When
    for _ in range(4):
        await client.post("/embed/text", json={"text": "the pump fails"})
    # Then
    assert await metrics(client) == {
        "total_embeddings_generated": 1,
        "cache_hits": 3,
        "cache_misses": 1,
        "cache_hit_rate": 0.75,
        "total_cost_usd": 0.0,
        "cost_saved_usd": 0.0,
        "models_loaded": ["all-MiniLM-L6-v2"],
    }


async def test_concurrent_requests_add_up_to_the_last_token(priced: Settings) -> None:
    # Given requests for few texts, so that equal ones are known, or being embedded, or in one request
    chosen = random.Random(7)
    texts = [f"word{number} " * chosen.randint(1, 9) for number in range(40)]
    batches = [chosen.choices(texts, k=chosen.randint(1, 30)) for _ in range(60)]
    provider, seen, done = FakeProvider(1536), [], asyncio.Event()
    embedder = Embedder(priced, providers={priced.model: lambda spec: provider})

    async with likewise.open(priced, embedder=embedder) as lw, calling(lw) as client:

        async def watch() -> None:
            while not done.is_set():
                sums = await total(client)
                seen.append([sums["texts"], sums["generated"], sums["tokens"], sums["cost"]])

        async def flush() -> None:
            while not done.is_set():
                await lw.runtime.bookkeeping.flush()
                await asyncio.sleep(0)

        # When they come at once, while others look and write
        beside = [asyncio.create_task(watch()), asyncio.create_task(flush())]
        await until(lambda: bool(seen))
        answers = await asyncio.gather(*(client.post("/embed/batch", json={"texts": batch}) for batch in batches))
        looks = len(seen)
        await until(lambda: len(seen) > looks)
        done.set()
        await asyncio.gather(*beside)
        # Then
        made = [answer.json() for answer in answers]
        sums, read = await total(client), sum(len(text.split()) + 2 for text in provider.texts)
        assert sums["texts"] == sum(map(len, batches))
        assert sums["cached"] == sum(one["cached_count"] for one in made)
        assert (sums["generated"], sums["tokens"]) == (len(provider.texts), read)
        assert sums["cost"] == pytest.approx(read * PER_TOKEN)
        assert sums["cost"] == pytest.approx(sum(one["total_cost"] for one in made))
        asked = sum(len(text.split()) + 2 for batch in batches for text in batch)
        assert sums["cost"] + sums["cost_avoided"] == pytest.approx(asked * PER_TOKEN)
        # And nobody saw less of anything than somebody before
        assert len(seen) > 1
        assert seen[0] != seen[-1]
        for before, after in pairwise(seen):
            assert all(less <= more for less, more in zip(before, after, strict=True))


async def test_a_reset_begins_anew_and_keeps_the_rows(client: httpx2.AsyncClient) -> None:
    # Given
    await client.post("/embed/batch", json={"texts": ["a", "b", "a"]})
    # When
    headers = {"idempotency-key": "reset-1"}
    first = await client.post(RESET, headers=headers)
    after = await metrics(client)
    await client.post("/embed/text", json={"text": "c"})
    again = await client.post(RESET, headers=headers)
    # Then
    assert (first.status_code, first.json()["status"]) == (200, "success")
    assert (after["total_embeddings_generated"], after["cache_misses"], after["cache_hit_rate"]) == (0, 0, 0.0)
    # And a repetition is answered and not done
    assert (again.json(), again.headers["idempotency-replayed"]) == (first.json(), "true")
    assert (await metrics(client))["total_embeddings_generated"] == 1
    assert (await total(client))["generated"] == 3
    # When
    await client.post(RESET)
    # Then
    assert (await metrics(client))["total_embeddings_generated"] == 0


async def test_usage_by_the_hour_begins_and_ends_at_hours(lw: Likewise, client: httpx2.AsyncClient) -> None:
    # Given usage of three hours, one text more in each
    tenant, first = await lw.tenant(), datetime(2026, 3, 1, 22, tzinfo=UTC)
    hours = [first + number * HOUR for number in range(3)]
    used = {UsageAccount(tenant, "minilm-l6-v2", hour): Usage(texts=n, generated=n) for n, hour in enumerate(hours, 1)}
    lw.embedder.ledger.put_back(used)

    async def asked(since: str, until: str) -> list[tuple[str, int]]:
        answer = await client.get(USAGE, params={"since": since, "until": until, "group_by": "hour"})
        return [(row["hour"], row["texts"]) for row in answer.json()["usage"]]

    # Then
    one, two, three = ("2026-03-01T22:00:00Z", 1), ("2026-03-01T23:00:00Z", 2), ("2026-03-02T00:00:00Z", 3)
    assert await asked("2026-03-01T00:00:00Z", "2026-03-03T00:00:00Z") == [one, two, three]
    assert await asked("2026-03-01T22:59:59Z", "2026-03-01T23:00:00Z") == [one]
    assert await asked("2026-03-01T23:00:00Z", "2026-03-02T00:00:01Z") == [two, three]
    assert await asked("2026-03-02T00:30:00+01:00", "2026-03-02T01:00:00+01:00") == [two]
    assert await asked("2026-03-02T01:00:00Z", "2026-03-03T00:00:00Z") == []
    # And what is older than the usual time is not in what is answered by default
    answer = (await client.get(USAGE)).json()
    assert (answer["usage"], answer["group_by"], answer["total"]["texts"]) == ([], "model", 0)
    assert datetime.fromisoformat(answer["until"]) - datetime.fromisoformat(answer["since"]) < timedelta(days=31)


@pytest.mark.parametrize(
    ("parameters", "pointer", "words"),
    [
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-02T00:00:00Z"}, "/since", "before"),
        ({"since": "9999-01-01T00:00:00Z"}, "/since", "before"),
        ({"until": "0001-01-01T00:00:00Z"}, "/since", "before"),
        ({"since": "2025-01-01T00:00:00Z", "until": "2026-01-03T00:00:00Z", "group_by": "hour"}, "/since", "366 days"),
        ({"since": "yesterday"}, "/since", "RFC 3339"),
        ({"until": "2026-01-01T00:00:00"}, "/until", "RFC 3339"),
        ({"group_by": "tenant"}, "/group_by", ""),
        ({"model": "minilm-l6-v2"}, "/model", "no such field"),
    ],
)
async def test_what_cannot_be_reported_is_refused(
    client: httpx2.AsyncClient, parameters: dict[str, str], pointer: str, words: str
) -> None:
    answer = await client.get(USAGE, params=parameters)
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == pointer
    assert words in fault["message"]


async def test_a_remote_model_costs_what_its_tokens_say_and_the_cache_avoids_it(priced: Settings) -> None:
    async with likewise.open(priced, embedder=remote(priced)) as lw:
        # When: 5 tokens, twice in one request, then known
        first = await lw.embed(["one two three", "one two three"])
        known = await lw.embed(["one two three", "four"])
        # Then
        report = await lw.usage()
        assert (first.cost, known.cost) == (pytest.approx(5 * PER_TOKEN), pytest.approx(3 * PER_TOKEN))
        assert (report.total.tokens, report.total.generated, report.total.cached) == (8, 2, 1)
        assert report.total.cost == pytest.approx(8 * PER_TOKEN)
        assert report.total.cost_avoided == pytest.approx(10 * PER_TOKEN)
        assert report.total.estimated == 0
        assert [row["model"] for row in report.usage] == ["text-embedding-3-small"]


async def test_tokens_that_nobody_counted_are_marked(priced: Settings) -> None:
    async with likewise.open(priced, embedder=remote(priced, estimated=True)) as lw:
        await lw.embed(["one two three"])
        assert ((await lw.usage()).total.estimated, (await lw.usage()).total.tokens) == (5, 5)


async def test_who_left_has_paid_all_the_same(priced: Settings) -> None:
    # Given a text in the model
    provider = FakeProvider(1536, gate=asyncio.Event())
    embedder = Embedder(priced, providers={priced.model: lambda spec: provider})
    async with likewise.open(priced, embedder=embedder) as lw:
        leaving = asyncio.create_task(lw.embed(["one two three"]))
        await until(lambda: bool(provider.calls))
        # When who asked for it leaves
        leaving.cancel()
        assert provider.gate is not None
        provider.gate.set()
        await lw.embed(["four"])

        # Then
        async def counted() -> bool:
            return (await lw.usage()).total.generated == 2

        await until(counted)
        total = (await lw.usage()).total
        assert (total.texts, total.tokens) == (1, 5 + 3)
        assert total.cost == pytest.approx(8 * PER_TOKEN)


async def test_what_the_worker_and_searches_embed_counts_for_whose_it_is(
    lw: Likewise, client: httpx2.AsyncClient
) -> None:
    # When
    await lw.collection("notes").add([{"id": "1", "text": "one two"}, {"id": "2", "text": "three"}])
    await lw.collection("notes").search("one two three", mode="dense")
    # Then
    sums = await total(client)
    assert (sums["generated"], sums["tokens"]) == (3, 4 + 3 + 5)


async def test_two_tenants_see_their_own_and_reset_their_own(settings: Settings) -> None:
    # Given
    settings = settings.model_copy(update={"auth": "keys"})
    embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
    alpha, beta = [{"x-api-key": await make_key(settings, name, *Scope)} for name in ("alpha", "beta")]
    reader = {"x-api-key": await make_key(settings, "beta", Scope.READ)}
    async with (
        likewise.open(settings, embedder=embedder) as lw,
        calling(lw) as client,
    ):
        # When both embed the same, and one of them more
        for headers, texts in ((alpha, ["same"]), (beta, ["same", "more"])):
            await client.post("/embed/batch", json={"texts": texts}, headers=headers)
        # Then each has their own
        assert [(await metrics(client, **one))["total_embeddings_generated"] for one in (alpha, beta)] == [1, 2]
        assert (await client.get(USAGE, headers=alpha)).json()["total"]["texts"] == 1
        # And who may only read cannot reset, nor a stranger see
        assert (await client.post(RESET, headers=reader)).status_code == 403
        assert [(await client.get(path)).status_code for path in (METRICS, USAGE)] == [401, 401]
        # When
        assert (await client.post(RESET, headers=beta)).status_code == 200
        # Then
        assert [(await metrics(client, **one))["total_embeddings_generated"] for one in (alpha, beta)] == [1, 0]


async def test_two_processes_add_to_the_same_rows(open_likewise: Opener) -> None:
    # Given
    async with open_likewise(worker=False) as one, open_likewise(worker=False) as other:
        # When
        for time in range(3):
            await asyncio.gather(one.embed([f"one {time}"]), other.embed([f"other {time}"]))
            await asyncio.gather(one.runtime.bookkeeping.flush(), other.runtime.bookkeeping.flush())
        # Then each sees all
        assert [(await lw.usage()).total.generated for lw in (one, other)] == [6, 6]


async def test_closing_keeps_what_was_used_last(open_likewise: Opener) -> None:
    async with open_likewise(worker=False) as lw:
        await lw.embed(["a", "b"])
    async with open_likewise(worker=False) as lw:
        report = await lw.usage(group_by="hour")
    assert report.total.generated == 2
    assert json.dumps(report.usage, default=str).count("hour") == 1
