"""Workers in processes of their own on the segments of one server: racing, and one that slept past its lease."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from likewise.testing import Asked, LiveServer, LiveWorker, Reply, Upstream, open_folder
from tests.models_file import models_file
from tests.patience import until


@dataclass
class House:
    """A server that embeds nothing itself, its model, and what its workers need."""

    server: LiveServer
    client: httpx2.AsyncClient
    upstream: Upstream
    environment: dict[str, str]

    def worker(self) -> LiveWorker:
        return LiveWorker(self.server.data_dir, self.environment)

    async def embed(self, asset: str, texts: list[str]) -> str:
        """Send texts; the id of their job."""
        segments = [{"segment_id": f"s{place}", "text": text} for place, text in enumerate(texts)]
        answer = await self.client.post("/vectors/embed/batch", json={"asset_id": asset, "segments": segments})
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["job_id"])

    async def ended(self, job: str) -> dict[str, Any]:
        """A job, once it has ended."""
        found: dict[str, Any] = {}

        async def over() -> bool:
            found.update((await self.client.get(f"/jobs/{job}")).json())
            return found["status"] not in ("PENDING", "RUNNING")

        await until(over)
        return found

    async def asked(self, statement: Any) -> list[tuple[Any, ...]]:
        """Rows, seen as their owner."""
        url = f"host={self.server.data_dir / 'postgres' / 'socket'} port=5432 user=likewise_owner dbname=likewise"
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute("SET search_path = likewise, public")
            return await (await connection.execute(statement)).fetchall()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """The server, its database and a model at an address."""
    folder = open_folder()
    try:
        async with Upstream().running() as upstream:
            environment = {
                "LIKEWISE_MODELS_FILE": str(models_file(tmp_path, upstream.url)),
                "LIKEWISE_MODEL": "ours",
                "LIKEWISE_LEASE_SECONDS": "2",
                "LIKEWISE_EMBED_WORKER": "false",
                "LIKEWISE_CACHE_BYTES": "0",
            }
            async with (
                LiveServer(folder, environment).running() as server,
                httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
            ):
                yield House(server, client, upstream, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def test_two_workers_that_race_embed_each_text_once(house: House) -> None:
    # Given
    texts = [f"pump {number} is cold" for number in range(600)]
    jobs = [await house.embed(f"asset {n}", texts[n * 100 : n * 100 + 100]) for n in range(6)]
    # When
    async with house.worker().running(), house.worker().running():
        ends = [await house.ended(job) for job in jobs]
    # Then
    assert {end["status"] for end in ends} == {"SUCCEEDED"}
    sent = [text for asked in house.upstream.asked for text in asked.texts if text in set(texts)]
    assert sorted(sent) == sorted(texts)
    assert await house.asked("SELECT count(*) FROM waiting") == [(0,)]


async def test_a_worker_that_slept_past_its_lease_writes_nothing(house: House) -> None:
    sleeper = house.worker()
    async with sleeper.running():
        # Given a worker that is stopped while its text is in the model
        await house.ended(await house.embed("warm", ["warm"]))
        house.upstream.gate = gate = asyncio.Event()
        job = await house.embed("a", ["the pump freezes"])
        await until(lambda: house.upstream.under_way == 1)
        os.kill(sleeper.pid, signal.SIGSTOP)
        # When another takes over, whose model answers otherwise, so that the two can be told apart
        house.upstream.gate = None
        house.upstream.always = _of_other_texts
        other = house.worker()
        async with other.running():
            assert (await house.ended(job))["status"] == "SUCCEEDED"
        before = await _vectors(house)
        # And the sleeper wakes with its answer
        house.upstream.always = None
        gate.set()
        os.kill(sleeper.pid, signal.SIGCONT)
        await house.ended(await house.embed("b", ["it is awake and works"]))
        # Then what the other wrote is there, and nothing else
        after = await _vectors(house)
    assert before.items() <= after.items()
    assert len(after) == 3
    assert (await house.client.get(f"/jobs/{job}")).json()["status"] == "SUCCEEDED"


def _of_other_texts(asked: Asked) -> Reply | None:
    """For a text the vector of nothing like it; the probe is answered well."""
    if asked.texts != ["the pump freezes"]:
        return None
    vector = [1.0, *[0.0] * 15]
    return Reply.of({**asked.good, "data": [{"object": "embedding", "index": 0, "embedding": vector}]})


async def _vectors(house: House) -> dict[int, tuple[str, Any]]:
    """Each content's vector and when it was written."""
    ((generation,),) = await house.asked("SELECT id FROM generations")
    rows = await house.asked(f"SELECT content, embedding::text, embedded_at FROM vec_{generation}")
    return {content: (vector, at) for content, vector, at in rows}
