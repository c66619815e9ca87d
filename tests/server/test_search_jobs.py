"""Searches that are jobs: what their results keep, and what they are refused or given up for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest

import likewise
from likewise.apps.segments.service import SEARCH as SEARCH_TASK
from likewise.backoff import Backoff
from likewise.embedding.embedder import Embedder
from likewise.ingest import tasks
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import DatabaseUrls, FakeProvider, ScriptedReply, Upstream
from tests.ingest.rows import asked
from tests.search.rerankers import at
from tests.server.conftest import calling
from tests.server.test_segments import BATCH, COLD, EMBED, LATER, SEARCH, WARM, ended, faults, segment, stored

SECRET = "xyzzy-secret"


@pytest.fixture
async def client(lw: Likewise) -> Any:
    """A client of a Likewise on a database of the test's own."""
    async with calling(lw) as calls:
        yield calls


async def searched(client: httpx2.AsyncClient, **question: Any) -> dict[str, Any]:
    """The job of a search, once it has ended."""
    accepted = await client.post(LATER, json={"query_text": COLD, **question})
    assert accepted.status_code == 202, accepted.text
    return await ended(client, accepted.json()["job_id"])


def names(job: dict[str, Any]) -> list[str]:
    assert job["result"]["total"] == len(job["result"]["results"])
    return sorted(hit["payload"]["segment_id"] for hit in job["result"]["results"])


# What is kept


async def test_what_is_deleted_leaves_the_results_of_searches_too(
    client: httpx2.AsyncClient, database: DatabaseUrls
) -> None:
    # Given a search that found four segments of two assets
    batch = [{"segment_id": one, "text": f"{COLD} {one}", "metadata": {"note": f"{SECRET} {one}"}} for one in "abc"]
    await stored(client, {"asset_id": f"{SECRET} manual", "segments": batch}, BATCH)
    await stored(client, segment("other", f"{COLD} d", "d"), EMBED)
    job = await searched(client)
    assert names(job) == ["a", "b", "c", "d"]
    points = {hit["payload"]["segment_id"]: hit["point_id"] for hit in job["result"]["results"]}

    async def now() -> list[str]:
        return names((await client.get(f"/jobs/{job['job_id']}")).json())

    # Then its row has nothing of them
    [(kept,)] = await asked(database, "SELECT result::text FROM jobs WHERE kind = 'segments_search'")
    assert SECRET not in kept
    assert not any(point in kept for point in points.values())
    # When one is deleted, another has another text, and at last their asset goes
    assert (await client.delete(f"/vectors/{points['a']}")).status_code == 204
    assert await now() == ["b", "c", "d"]
    await stored(client, segment(f"{SECRET} manual", WARM, "b"), EMBED)
    assert await now() == ["c", "d"]
    assert (await client.delete(f"/vectors/asset/{SECRET} manual")).status_code == 204
    # Then the job tells of what is there
    answer = await client.get(f"/jobs/{job['job_id']}")
    assert names(answer.json()) == ["d"]
    assert SECRET not in answer.text


async def test_a_result_tells_what_is_said_of_a_segment_by_now(client: httpx2.AsyncClient) -> None:
    await stored(client, segment("manual", metadata={"lang": "en"}), EMBED)
    job = await searched(client)
    await stored(client, segment("manual", metadata={"lang": "de"}), EMBED)
    [hit] = (await client.get(f"/jobs/{job['job_id']}")).json()["result"]["results"]
    assert hit["payload"]["metadata"] == {"lang": "de"}
    assert hit["score"] == job["result"]["results"][0]["score"]


async def test_a_list_of_jobs_has_no_hits(client: httpx2.AsyncClient) -> None:
    await stored(client, segment("manual", metadata={"note": SECRET * 1_000}), EMBED)
    for _ in range(3):
        assert names(await searched(client)) == ["1"]
    answer = await client.get("/jobs", params={"limit": 100})
    [embedded, *searches] = answer.json()["jobs"][::-1]
    assert embedded["result"]["tokens"] == 9
    model = "sentence-transformers/all-MiniLM-L6-v2"
    assert [one["result"] for one in searches] == [{"query_model": model, "query_model_ver": "v1"}] * 3
    assert SECRET not in answer.text


async def test_a_search_before_anything_is_stored_has_nothing_to_tell(client: httpx2.AsyncClient) -> None:
    job = await searched(client)
    assert (job["status"], names(job)) == ("SUCCEEDED", [])
    await stored(client, segment("manual"), EMBED)
    assert names((await client.get(f"/jobs/{job['job_id']}")).json()) == []


# What they are refused for


@asynccontextmanager
async def opened(settings: Settings, **changes: Any) -> AsyncIterator[tuple[Likewise, httpx2.AsyncClient]]:
    """A Likewise with other settings, and a client of it."""
    chosen = settings.model_copy(update=changes)
    embedder = Embedder(chosen, providers={chosen.model: lambda spec: FakeProvider()})
    async with likewise.open(chosen, embedder=embedder) as lw, calling(lw) as client:
        yield lw, client


@pytest.mark.parametrize("there_is_one", [False, True])
@pytest.mark.parametrize(
    ("wrong", "pointer", "code"),
    [
        ({"mode": "hybrid"}, "/mode", "terms_not_kept"),
        ({"mode": "lexical"}, "/mode", "terms_not_kept"),
        ({"rerank": True}, "/rerank", "rerank_needs_text"),
    ],
)
async def test_what_a_search_is_refused_for_its_job_is_refused_for(
    client: httpx2.AsyncClient, there_is_one: bool, wrong: dict[str, Any], pointer: str, code: str
) -> None:
    if there_is_one:
        await stored(client, segment("manual"), EMBED)
    for path in (SEARCH, LATER):
        answer = await client.post(path, json={"query_text": COLD} | wrong)
        assert (answer.status_code, faults(answer)) == (422, {pointer: code}), path


async def test_without_a_reranker_nobody_waits_for_one(settings: Settings) -> None:
    async with opened(settings, segments_keep_text=True) as (_, client):
        await stored(client, segment("manual"), EMBED)
        for path in (SEARCH, LATER):
            answer = await client.post(path, json={"query_text": COLD, "rerank": True})
            assert (answer.status_code, answer.json()["code"]) == (503, "reranker_missing"), path


# What they are given up for


async def test_a_reranker_that_fails_on_the_texts_is_not_asked_for_a_day(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a reranker that fails whatever it is asked
    monkeypatch.setattr(tasks, "RETRY", Backoff(0.01, 0.02))
    async with Upstream().running() as upstream:
        upstream.always = lambda _: ScriptedReply.of({"results": SECRET})
        async with opened(settings, segments_keep_text=True, **at(tmp_path, upstream.url)) as (_, client):
            await stored(client, segment("manual"), EMBED)
            # When
            job = await searched(client, rerank=True)
    # Then
    assert (job["status"], job["error"]["code"]) == ("FAILED", "model_failed")
    assert "the server's log has the reason" in job["error"]["message"]
    # And the log has it
    assert "task_given_up" in str([record.msg for record in caplog.records])
    assert SECRET not in caplog.text


async def test_one_that_cannot_be_done_any_more_says_why(lw: Likewise) -> None:
    # Given a query that was taken when words were kept
    tenant = await lw.tenant()
    query = b'{"query_text": "cold", "mode": "hybrid"}'
    async with calling(lw) as client, lw.runtime.pool.tenant(tenant) as tx:
        await stored(client, segment("manual"), EMBED)
        job = UUID(int=7)
        await lw.runtime.tasks.add(tx, job, SEARCH_TASK, query)
    async with calling(lw) as client:
        # When no worker can do it
        told = await ended(client, str(job))
    # Then
    assert (told["status"], told["error"]["code"]) == ("FAILED", "terms_not_kept")
    assert "mode dense" in told["error"]["message"]
