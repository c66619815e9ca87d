"""Searches that are jobs: what their results keep, and what they are refused or given up for."""

from typing import Any

import httpx2
import pytest

from likewise.library import Likewise
from likewise.testing import DatabaseUrls
from tests.ingest.rows import asked
from tests.server.conftest import calling
from tests.server.test_segments import BATCH, COLD, EMBED, LATER, WARM, ended, segment, stored

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
