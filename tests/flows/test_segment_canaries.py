"""A canary in every text, query and document, through every failure: it is nowhere in clear, on disk or told."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from likewise.testing import Asked, FakeProvider, LiveServer, LiveWorker, Reply, Upstream, open_folder
from tests.models_file import models_file
from tests.patience import until

# In texts and queries; in ids, metadata and names of fields.
TEXT, ID = "zwitscher", "trillerpfeife"
DIMENSION = 16


@dataclass
class House:
    """A server and a worker on real files, with a model at an address; their log, and all that was answered."""

    folder: Path
    server: LiveServer
    worker: LiveWorker
    upstream: Upstream
    client: httpx2.AsyncClient
    log: Path
    environment: dict[str, str]
    answers: list[str] = field(default_factory=list)

    async def send(self, method: str, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        """A request, whose answer is kept."""
        answer = (
            await self.client.request(method, path, json=body, **options)
            if body is not None
            else (await self.client.request(method, path, **options))
        )
        self.answers.append(answer.text + str(answer.headers))
        return answer

    async def embed(self, segment: str, text: str) -> str:
        """A segment; the id of its job."""
        body = {"asset_id": f"{ID}/asset", "segment_id": segment, "text": text, "metadata": {ID: ID}}
        answer = await self.send("POST", "/vectors/embed", body)
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["job_id"])

    async def ended(self, job: str) -> str:
        """What became of a job."""
        status = ""

        async def over() -> bool:
            nonlocal status
            status = (await self.client.get(f"/jobs/{job}")).json()["status"]
            return status not in ("PENDING", "RUNNING")

        await until(over, seconds=40)
        return status

    async def as_superuser(self, statement: Any) -> None:
        """Have Postgres do something."""
        url = f"host={self.folder / 'postgres' / 'socket'} port=5432 user=postgres dbname=likewise"
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute("SET search_path = likewise, public")
            await connection.execute(statement)

    async def on_disk(self, *wanted: bytes) -> list[str]:
        """The files of the data folder that hold any of these bytes, after everything in memory has been written."""
        await self.as_superuser("CHECKPOINT")
        return await asyncio.to_thread(_files_with, self.folder, wanted)

    async def told(self) -> str:
        """All that was logged, answered and counted."""
        pages = [(await self.client.get("/metrics")).text]
        return "\n".join([self.log.read_text("utf-8", "replace"), *self.answers, *pages])


def _files_with(folder: Path, wanted: tuple[bytes, ...]) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # Postgres has just removed it
                continue
            if any(one in content for one in wanted):
                found.append(str(path.relative_to(folder)))
    return found


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """The processes and their files."""
    folder = open_folder()
    log = tmp_path / "log"
    try:
        async with Upstream(DIMENSION).running() as upstream:
            environment = {
                "LIKEWISE_MODELS_FILE": str(models_file(tmp_path, upstream.url)),
                "LIKEWISE_MODEL": "ours",
                "LIKEWISE_LEASE_SECONDS": "2",
                "LIKEWISE_EMBED_WORKER": "false",
                "LIKEWISE_LOG_LEVEL": "debug",
            }
            async with (
                LiveServer(folder, environment, log=log).running() as server,
                LiveWorker(folder, environment, log=log).running() as worker,
                httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
            ):
                yield House(folder, server, worker, upstream, client, log, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(240)
async def test_a_text_is_nowhere_in_clear_whatever_happens(house: House) -> None:
    # Given a model that is away: everything waits
    house.upstream.always = Reply.of({"error": "away"}, 503)
    jobs = [await house.embed("one", f"{TEXT} of a pump"), await house.embed("two", f"poison and {TEXT}")]
    document = {"asset_id": "document", "text": f"The {TEXT} sings. " * 200}
    jobs.append((await house.send("POST", "/vectors/documents", document)).json()["job_id"])
    search = {"query_text": f"where is {TEXT}?"}
    jobs.append((await house.send("POST", "/vectors/search/async", search)).json()["job_id"])
    batch = {"asset_id": ID, "segments": [{"segment_id": str(n), "text": f"{n} {TEXT}"} for n in range(20)]}
    jobs.append((await house.send("POST", "/vectors/embed/batch", batch)).json()["job_id"])
    assert await house.on_disk(TEXT.encode()) == []
    # And requests that are wrong, or that cannot be answered now
    for path in ("/vectors/embed", "/vectors/embed/batch", "/vectors/documents", "/vectors/search"):
        for body in (f'{{"text": "{TEXT}"', f'"{TEXT}"', f'{{"{TEXT}": "{TEXT}"}}'):
            await house.send("POST", path, content=body, headers={"content-type": "application/json"})
        await house.send("POST", path, {"asset_id": 5, "text": TEXT, "query_text": TEXT, "filters": {TEXT: {"$x": 1}}})
    assert (await house.send("POST", "/vectors/search", search)).status_code == 503
    # When Postgres and the worker are killed, the worker with texts in the model
    os.kill(house.server.postmaster_pid(), signal.SIGKILL)
    await until(lambda: _ready(house), seconds=40)
    house.upstream.gate = gate = asyncio.Event()
    house.upstream.always = _refuses_poison
    await until(lambda: house.upstream.under_way > 0, seconds=40)
    await house.worker.kill()
    house.upstream.gate = None
    gate.set()
    assert await house.on_disk(TEXT.encode()) == []
    await house.worker.start()
    # Then each job ends, the poisoned text's with a failure
    assert [await house.ended(job) for job in jobs] == ["SUCCEEDED", "FAILED", "SUCCEEDED", "SUCCEEDED", "SUCCEEDED"]
    found = await house.send("POST", "/vectors/search", {"query_text": f"{TEXT} of a pump"})
    assert found.json()["results"][0]["score"] > 0.99
    # And what has waited for a day leaves without ever having been in clear
    house.upstream.always = Reply.of({"error": "away"}, 503)
    late = await house.embed("late", f"{TEXT} comes late")
    await house.as_superuser("UPDATE waiting SET entered_at = now() - interval '25 hours'")
    await house.as_superuser("SELECT expire_sealed(interval '24 hours', 100)")
    assert await house.ended(late) == "FAILED"
    assert await house.on_disk(TEXT.encode()) == []
    # And nobody was told of a text, nor of an id but who had sent it
    told = await house.told()
    assert TEXT not in told.lower()
    logged = house.log.read_text("utf-8", "replace") + (await house.client.get("/metrics")).text
    assert '"event"' in logged
    assert ID not in logged


@pytest.mark.timeout(240)
async def test_after_a_purge_not_even_the_vectors_bytes_are_there(house: House) -> None:
    # Given a vector, on disk
    text = f"{TEXT} of a pump"
    assert await house.ended(await house.embed("one", text)) == "SUCCEEDED"
    assert await house.ended(await house.embed("stays", "another one")) == "SUCCEEDED"
    (vector,) = (await FakeProvider(DIMENSION).embed([text], "document")).vectors
    halves = vector.astype("<f2").tobytes()
    slices = (halves[:16], halves[16:])
    assert await house.on_disk(*slices)
    # When it is deleted and what is deleted is purged, beside the server
    answer = await house.send("DELETE", f"/vectors/asset/{ID}/asset")
    assert answer.status_code == 204
    assert await house.ended(await house.embed("stays", "another one")) == "SUCCEEDED"
    purge = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "likewise", "db", "purge", "--json",
        env={**os.environ, "LIKEWISE_DATA_DIR": str(house.folder), **house.environment},
    )  # fmt: skip
    assert await asyncio.wait_for(purge.wait(), 60) == 0
    # Then it is gone from every file, and what was not deleted is there
    assert await house.on_disk(*slices) == []
    found = await house.send("POST", "/vectors/search", {"query_text": "another one"})
    assert [hit["payload"]["segment_id"] for hit in found.json()["results"]] == ["stays"]


async def _ready(house: House) -> bool:
    return (await house.client.get("/readyz")).status_code == 200


def _refuses_poison(asked: Asked) -> Reply | None:
    """400 for a batch with a text that it does not like, as a provider says it, with the text in its own words."""
    poisoned = [text for text in asked.texts if "poison" in text]
    return Reply.of({"error": {"message": f"I do not like {poisoned[0]}"}}, 400) if poisoned else None
