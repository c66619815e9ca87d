"""SIGKILL at random moments of mixed writes of segments: none acknowledged is lost or doubled, and every job ends."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from likewise.db.contents import text_hash
from likewise.testing import LiveServer, LiveWorker
from tests.flows.invariants import broken
from tests.ingest.rows import asked, url_of
from tests.patience import PATIENCE, until

# A server is started after each kill: on a slow machine beside other load that alone takes minutes.
pytestmark = pytest.mark.timeout(1_800)

# Whom each kill: twenty times the server or the worker, and now and then their Postgres, which both survive.
KILLS = "swswswwsswpwspwswpswsws"
WRITERS = 3
# What a writer writes around each kill, however long a slow machine takes to start what was killed: vectors keep up.
DEEDS = 15
ENDED = {"SUCCEEDED", "FAILED", "CANCELLED"}
WORDS_A_TEXT = 3
WORDS = "pump valve rotor cold freeze leak start stop alarm pressure motor shaft bearing flow sensor".split()


@dataclass
class Writer:
    """Writes, overwrites and deletes segments of its own assets, each time until it is acknowledged."""

    server: LiveServer
    number: int
    stored: dict[tuple[str, str], str] = field(default_factory=dict)
    points: dict[tuple[str, str], str] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    allowed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    stopping: bool = False

    async def run(self) -> None:
        """Until it is told to stop."""
        self.dice = random.Random(self.number)
        deeds: list[Callable[[], Awaitable[None]]] = [self.one, self.one, self.batch, self.document, self.delete]
        async with httpx2.AsyncClient(timeout=PATIENCE) as self.client:
            while await self.allowed.acquire() and not self.stopping:
                await self.dice.choice(deeds)()
                await asyncio.sleep(self.dice.uniform(0.02, 0.2))

    def may(self, deeds: int) -> None:
        """Let it do so many more."""
        for _ in range(deeds):
            self.allowed.release()

    def asset(self) -> str:
        return f"w{self.number}/asset {self.dice.randint(0, 5)}"

    def text(self) -> str:
        return f"report {self.dice.randint(0, 10**6)}: " + " ".join(self.dice.choices(WORDS, k=WORDS_A_TEXT))

    async def one(self) -> None:
        """A segment, new or in the place of another."""
        asset, segment, text = self.asset(), f"s{self.dice.randint(0, 9)}", self.text()
        answer = await self.until_done(
            "POST", "/vectors/embed", {"asset_id": asset, "segment_id": segment, "text": text}
        )
        self.stored[asset, segment] = text
        self.jobs.append(answer["job_id"])

    async def batch(self) -> None:
        """Some at once."""
        asset = self.asset()
        segments = {f"s{n}": self.text() for n in range(self.dice.randint(1, 10))}
        body = {"asset_id": asset, "segments": [{"segment_id": name, "text": text} for name, text in segments.items()]}
        answer = await self.until_done("POST", "/vectors/embed/batch", body)
        self.stored |= {(asset, name): text for name, text in segments.items()}
        self.jobs.append(answer["job_id"])

    async def document(self) -> None:
        """A document, in the place of the one before."""
        asset = f"w{self.number}/document {self.dice.randint(0, 2)}"
        text = ". ".join(self.text() for _ in range(self.dice.randint(5, 40)))
        answer = await self.until_done(
            "POST", "/vectors/documents", {"asset_id": asset, "text": text, "max_tokens": 48}
        )
        self.stored = {key: kept for key, kept in self.stored.items() if key[0] != asset}
        self.stored |= {(asset, one["segment_id"]): text[one["start"] : one["end"]] for one in answer["segments"]}
        self.jobs.append(answer["job_id"])

    async def delete(self) -> None:
        """All of an asset."""
        asset = self.asset()
        await self.until_done("DELETE", f"/vectors/asset/{asset}", None)
        self.stored = {key: kept for key, kept in self.stored.items() if key[0] != asset}

    async def until_done(self, method: str, path: str, body: Any) -> Any:
        """Ask again until it is acknowledged; what was deleted is not there the second time."""
        while True:
            try:
                answer = await self.client.request(method, self.server.url + path, json=body)
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code < 300:
                return answer.json() if answer.content else None
            if method == "DELETE" and answer.status_code == 404:
                return None
            self.refused.add(answer.status_code)
            await asyncio.sleep(0.05)


@pytest.fixture
def environment(real_models: Path) -> dict[str, str]:
    """A server that leaves the work to a worker, and leases that are over soon."""
    return {
        "LIKEWISE_MODELS_DIR": str(real_models),
        "LIKEWISE_LEASE_SECONDS": "2",
        "LIKEWISE_OFFLINE": "true",
        "LIKEWISE_EMBED_WORKER": "false",
    }


async def test_twenty_kills_lose_and_double_nothing_and_every_job_ends(
    folder: Path, environment: dict[str, str]
) -> None:
    # Given a server and a worker under mixed writes
    async with LiveServer(folder, environment).running() as server, LiveWorker(folder, environment).running() as worker:
        await _killed_under_writes(server, worker)
        assert await worker.stop() == 0
        assert await server.stop() == 0


async def _killed_under_writes(server: LiveServer, worker: LiveWorker) -> None:
    writers = [Writer(server, number) for number in range(WRITERS)]
    writing = [asyncio.create_task(writer.run()) for writer in writers]
    # When one of them is killed, time after time
    for whom in KILLS:
        for writer in writers:
            writer.may(DEEDS)
        await asyncio.sleep(random.uniform(0.2, 0.9))
        if whom == "p":
            os.kill(server.postmaster_pid(), signal.SIGKILL)
            continue
        killed = server if whom == "s" else worker
        await killed.kill()
        await killed.start()
    for writer in writers:
        writer.stopping = True
        writer.may(1)
    await asyncio.gather(*writing)
    # Then every job that anybody was told of ends, and what is stored is what was acknowledged
    async with httpx2.AsyncClient(timeout=PATIENCE, base_url=server.url) as client:
        for job in {job for writer in writers for job in writer.jobs}:
            await _ends(client, job)
        await _is_stored_once(server, {key: text for writer in writers for key, text in writer.stored.items()})
        for writer in writers:
            stored = sorted(writer.stored.items())
            for (asset, segment), text in random.Random(1).sample(stored, min(15, len(stored))):
                await _is_found(client, asset, segment, text)
    assert {status for writer in writers for status in writer.refused} <= {503}
    # And every text has its vector, and every row its place
    assert await broken(url_of(server.data_dir)) == {}


async def _ends(client: httpx2.AsyncClient, job: str) -> None:
    async def over() -> bool:
        answer = await client.get(f"/jobs/{job}")
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] != "FAILED", answer.text
        return answer.json()["status"] in ENDED

    await until(over)


async def _is_stored_once(server: LiveServer, expected: dict[tuple[str, str], str]) -> None:
    url = url_of(server.data_dir)
    found = await asked(
        url,
        "SELECT r.parent, r.payload ->> 'segment_id', encode(c.text_hash, 'hex'), c.state, c.sealed IS NULL "
        "FROM records r JOIN contents c ON c.pk = r.content",
    )
    assert sorted(row[:3] for row in found) == sorted((*key, text_hash(text).hex()) for key, text in expected.items())
    assert {row[3:] for row in found} == {("live", True)}
    assert await asked(url, "SELECT count(*) FROM jobs WHERE ended_at IS NULL") == [(0,)]
    assert await asked(url, "SELECT count(*) FROM waiting") == [(0,)]


async def _is_found(client: httpx2.AsyncClient, asset: str, segment: str, text: str) -> None:
    body = {"query_text": text, "asset_id": asset, "segment_id": segment, "limit": 5}
    answer = await client.post("/vectors/search", json=body)
    assert answer.status_code == 200, answer.text
    (hit,) = answer.json()["results"]
    assert hit["score"] > 0.99
