"""What storing costs: records a second, vectors a second, and the server's peak memory, over HTTP.

    python -m benchmarks.ingest [passages.jsonl.gz]

The server is a fresh one in a temporary folder; Postgres's memory is not counted.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.surroundings import DATA, fresh_server, lines, machine
from likewise.testing import LiveServer

BATCH = 500


def peak_mib(pid: int) -> float:
    """The most memory that a process has had resident, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


async def store(client: httpx2.AsyncClient, passages: list[dict[str, Any]]) -> float:
    """Seconds until everything is stored and findable by words."""
    (await client.post("/api/v1/collections", json={"name": "passages"})).raise_for_status()
    started = time.perf_counter()
    for start in range(0, len(passages), BATCH):
        records = [
            {"id": one["id"], "text": one["text"], "payload": {"source": one["source"], "kind": one["kind"]}}
            for one in passages[start : start + BATCH]
        ]
        (await client.post("/api/v1/collections/passages/records", json=records)).raise_for_status()
    return time.perf_counter() - started


async def measure(server: LiveServer, passages: list[dict[str, Any]]) -> None:
    """Print what it took."""
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
        started = time.perf_counter()
        stored = await store(client, passages)
        while (stats := (await client.get("/api/v1/collections/passages/stats")).json())["waiting"]:
            await asyncio.sleep(0.5)
        embedded = time.perf_counter() - started
    print(f"stored    {len(passages)} records in {stored:.1f} s: {len(passages) / stored:.0f}/s, embedding beside it")
    print(f"embedded  {stats['vectors']} contents in {embedded:.1f} s: {stats['vectors'] / embedded:.0f}/s")
    print(f"failed    {stats['failed']}, waiting {stats['waiting']}")
    print(f"peak memory of the server {peak_mib(server.pid):.0f} MiB")


async def main() -> None:
    """Start a server, measure, and leave nothing behind."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "throughput-passages" / "passages.jsonl.gz"
    if not file.is_file():
        sys.exit(f"There is no file {file}: name one of packed JSON lines with id, text, source and kind.")
    print(machine())
    async with fresh_server() as server:
        await measure(server, lines(file))


if __name__ == "__main__":
    asyncio.run(main())
