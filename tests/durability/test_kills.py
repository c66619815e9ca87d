"""SIGKILL at random moments of an ingest: nothing that was acknowledged is lost, nothing is failed or done twice."""

import asyncio
import os
import random
import signal
from pathlib import Path

import httpx2
import pytest

from likewise.testing import LiveServer
from tests.patience import PATIENCE, until, until_none_left

# A server is started after each kill: on a slow machine beside other load that alone takes minutes.
pytestmark = pytest.mark.timeout(1_800)

KILLS = 10
# These of the ten kill Postgres and leave the server alive.
OF_POSTGRES = (2, 5, 8)
# Little enough to embed that vectors keep up with the writes, also on a slow machine beside other load.
BATCH, WORDS_A_TEXT = 8, 5
WORDS = "pump valve rotor cold freeze leak start stop alarm pressure motor shaft bearing flow sensor".split()


class Writer:
    """Posts batches for ever, each again until it is acknowledged, and remembers what was."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.acknowledged: dict[str, str] = {}
        self.created: list[int] = []
        self.refused: set[int] = set()
        self.stopping = False

    async def run(self) -> None:
        number = 0
        async with httpx2.AsyncClient(timeout=PATIENCE) as client:
            while not self.stopping:
                batch = [self._record(number + n) for n in range(BATCH)]
                await self._until_stored(client, batch)
                number += BATCH
                await asyncio.sleep(0.1)

    async def _until_stored(self, client: httpx2.AsyncClient, batch: list[dict[str, str]]) -> None:
        while True:
            try:
                answer = await client.post(
                    f"{self.server.url}/api/v1/collections/pumps/records",
                    json=batch,
                    headers={"idempotency-key": batch[0]["id"]},
                )
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == 200:
                self.created.append(answer.json()["created"])
                self.acknowledged.update({record["id"]: record["text"] for record in batch})
                return
            self.refused.add(answer.status_code)
            await asyncio.sleep(0.05)

    @staticmethod
    def _record(number: int) -> dict[str, str]:
        drawn = random.Random(number)
        return {"id": f"r{number}", "text": f"report {number}: " + " ".join(drawn.choices(WORDS, k=WORDS_A_TEXT))}


async def test_ten_kills_lose_nothing_and_fail_nothing(folder: Path, real_models: Path) -> None:
    # Given a server under a steady ingest
    environment = {"LIKEWISE_MODELS_DIR": str(real_models), "LIKEWISE_LEASE_SECONDS": "3", "LIKEWISE_OFFLINE": "true"}
    server = await LiveServer(folder, environment).start()
    async with httpx2.AsyncClient(timeout=PATIENCE) as client:
        (await client.post(f"{server.url}/api/v1/collections", json={"name": "pumps"})).raise_for_status()
        writer = Writer(server)
        writing = asyncio.create_task(writer.run())
        # When it or its Postgres is killed at random moments
        for kill in range(KILLS):
            await asyncio.sleep(random.uniform(0.3, 1.5))
            before = dict(writer.acknowledged)
            if kill in OF_POSTGRES:
                os.kill(server.postmaster_pid(), signal.SIGKILL)
                await _answers_again(client, server)
            else:
                await server.kill()
                await server.start()
            # Then what was acknowledged before is there
            await _are_there(client, server, before)
        writer.stopping = True
        await writing
        # And in the end each record has its vector, and none is failed
        stats = await _settled(client, server)
        await _are_there(client, server, writer.acknowledged)
    assert stats["failed"] == 0
    assert stats["records"] >= len(writer.acknowledged)
    assert stats["vectors"] == stats["contents"]
    # 409: who ran it was killed, and its lease runs on for a moment
    assert writer.refused <= {409, 503}
    # Whether a kill came before a commit or after it, its answer is that of the one time that it was done
    assert set(writer.created) == {BATCH}
    assert await server.stop() == 0


async def _answers_again(client: httpx2.AsyncClient, server: LiveServer) -> None:
    async def is_ready() -> bool:
        answer = await client.get(f"{server.url}/readyz")
        assert answer.status_code in (200, 503)
        return answer.status_code == 200

    await until(is_ready)


async def _are_there(client: httpx2.AsyncClient, server: LiveServer, expected: dict[str, str]) -> None:
    for record in random.sample(sorted(expected), min(25, len(expected))):
        answer = await client.get(f"{server.url}/api/v1/collections/pumps/records/{record}")
        assert answer.status_code == 200
        assert answer.json()["text"] == expected[record]
        assert answer.json()["vector"] != "failed"
    stats = (await client.get(f"{server.url}/api/v1/collections/pumps/stats")).json()
    assert stats["records"] >= len(expected)


async def _settled(client: httpx2.AsyncClient, server: LiveServer) -> dict[str, int]:
    stats: dict[str, int] = {}

    async def waiting() -> int:
        stats.update((await client.get(f"{server.url}/api/v1/collections/pumps/stats")).json())
        return stats["waiting"]

    await until_none_left(waiting)
    return stats
