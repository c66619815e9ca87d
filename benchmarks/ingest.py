"""What storing costs: records a second over HTTP, in batches, as one stream and one by one; and vectors a second.

    python -m benchmarks.ingest [passages.jsonl.gz]

The servers are fresh ones in a temporary folder, which serve as the plain role; Postgres's memory is not counted. Where
single records are stored, `commit_delay` has each flush take 2 ms more, as on a disk that is slower than this one.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import psycopg

from benchmarks.surroundings import (
    DATA,
    Caller,
    database_url,
    fresh_server,
    lines,
    machine,
    peak_mib,
    slow_flushes,
)
from likewise.testing import LiveServer

BATCH = 512
CLIENTS_IN_BATCHES = 2
SMALL_CLIENTS = 16
SMALL_SECONDS, SMALL_ROUNDS = 3.0, 3
RECORDS = "/api/v1/collections/passages/records"
STORE_ONLY = {"LIKEWISE_EMBED_WORKER": "false"}


def record(passage: dict[str, Any]) -> dict[str, Any]:
    """A passage as a record."""
    return {
        "id": passage["id"],
        "text": passage["text"],
        "payload": {"source": passage["source"], "kind": passage["kind"]},
    }


def in_bodies(records: list[dict[str, Any]]) -> list[bytes]:
    """Records as the bodies of requests."""
    return [orjson.dumps(records[start : start + BATCH]) for start in range(0, len(records), BATCH)]


async def make_collection(server: LiveServer) -> None:
    """The collection that everything goes into."""
    status, answer = await Caller(server.url).post("/api/v1/collections", b'{"name": "passages"}')
    if status != 201:
        sys.exit(f"The collection could not be made: {answer.decode()}")


async def store(
    server: LiveServer, bodies: Iterable[bytes], clients: int, media_type: str = "application/json"
) -> float:
    """Seconds until the bodies are stored, sent by so many clients at once."""
    left = iter(bodies)

    async def send() -> None:
        caller = Caller(server.url)
        for body in left:
            status, answer = await caller.post(RECORDS, body, media_type)
            if status != 200 or orjson.loads(answer)["failed"]:
                sys.exit(f"Not stored ({status}): {answer.decode()}")

    started = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(clients)))
    return time.perf_counter() - started


async def in_batches(records: list[dict[str, Any]]) -> None:
    """New and unchanged batches, and what the latter write."""
    bodies = in_bodies(records)
    async with fresh_server(STORE_ONLY) as server:
        await make_collection(server)
        seconds = await store(server, bodies, CLIENTS_IN_BATCHES)
        print(f"new           {len(records)} records in {seconds:.1f} s: {len(records) / seconds:.0f}/s")
        await refuse_unfound(server, records)
        async with await psycopg.AsyncConnection.connect(
            database_url(server, "likewise_owner"), autocommit=True
        ) as asking:
            before = await _wal(asking)
            seconds = await store(server, bodies, CLIENTS_IN_BATCHES)
            written = await _wal(asking) - before
        print(f"unchanged     {len(records) / seconds:.0f}/s, {written} bytes of WAL")


async def refuse_unfound(server: LiveServer, records: list[dict[str, Any]]) -> None:
    """What is stored is found by its words; if not, the figures mean nothing."""
    for one in records[:: len(records) // 20]:
        question = orjson.dumps({"query": one["text"], "mode": "lexical", "limit": 5})
        _, answer = await Caller(server.url).post("/api/v1/collections/passages/search", question)
        if one["id"] not in {hit["id"] for hit in orjson.loads(answer)["hits"]}:
            sys.exit(f"{one['id']} is stored and not found by its words.")


async def as_a_stream(records: list[dict[str, Any]]) -> None:
    """One body of lines after another, the second five times as long: what it takes more in memory."""
    async with fresh_server(STORE_ONLY) as server:
        await make_collection(server)
        for copies in (1, 5):
            many = [
                {**one, "id": f"{one['id']} {copies} {copy}", "text": f"{one['text']} {copies} {copy}"}
                for copy in range(copies)
                for one in records
            ]
            body = b"\n".join(map(orjson.dumps, many))
            seconds = await store(server, [body], 1, "application/x-ndjson")
            print(
                f"one stream    {len(many)} lines, {len(body) / 2**20:.0f} MiB: {len(many) / seconds:.0f}/s; "
                f"peak memory of the server {peak_mib(server.pid):.0f} MiB"
            )


async def one_by_one(records: list[dict[str, Any]]) -> None:
    """Single records of many clients, beside plain inserts of as many into the same Postgres."""
    async with fresh_server(STORE_ONLY) as server:
        await make_collection(server)
        await slow_flushes(server)
        await _make_plain(server)
        bodies = (orjson.dumps([{**one, "id": f"{one['id']} {n}"}]) for n in itertools.count() for one in records)
        texts = (one["text"] for one in itertools.cycle(records))

        async def ours() -> Callable[[], Awaitable[Any]]:
            caller = Caller(server.url)
            return lambda: caller.post(RECORDS, next(bodies))

        async def plain() -> Callable[[], Awaitable[Any]]:
            role = database_url(server, "likewise_server")
            connection = await psycopg.AsyncConnection.connect(role, autocommit=True)
            return lambda: connection.execute("INSERT INTO plain (body) VALUES (%s)", [next(texts)])

        ratios = []
        for _ in range(SMALL_ROUNDS):
            inserted, stored = await _a_second(plain), await _a_second(ours)
            ratios.append(stored / inserted)
            print(f"one by one    {stored:.0f}/s over HTTP, {inserted:.0f}/s plain inserts: {stored / inserted:.2f}")
        print(f"              median {sorted(ratios)[SMALL_ROUNDS // 2]:.2f}")


async def _a_second(client: Callable[[], Awaitable[Callable[[], Awaitable[Any]]]]) -> float:
    calls = [await client() for _ in range(SMALL_CLIENTS)]
    done = 0
    end = time.perf_counter() + SMALL_SECONDS

    async def again(call: Callable[[], Awaitable[Any]]) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    await asyncio.gather(*map(again, calls))
    return done / SMALL_SECONDS


async def _make_plain(server: LiveServer) -> None:
    async with await psycopg.AsyncConnection.connect(database_url(server, "postgres"), autocommit=True) as superuser:
        await superuser.execute(
            "CREATE TABLE public.plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)"
        )
        await superuser.execute("GRANT INSERT ON public.plain TO likewise_server")


async def _wal(connection: psycopg.AsyncConnection[Any]) -> int:
    row = await (await connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")).fetchone()
    return int(row[0]) if row else 0


async def with_vectors(records: list[dict[str, Any]]) -> None:
    """Storing with the worker beside it, and how long the vectors take."""
    bodies = in_bodies(records)
    async with fresh_server() as server:
        await make_collection(server)
        started = time.perf_counter()
        stored = await store(server, bodies, CLIENTS_IN_BATCHES)
        statement = "SELECT count(*) FROM likewise.waiting"
        async with await psycopg.AsyncConnection.connect(
            database_url(server, "likewise_owner"), autocommit=True
        ) as asking:
            while row := await (await asking.execute(statement)).fetchone():
                if row[0] == 0:
                    break
                await asyncio.sleep(0.5)
        embedded = time.perf_counter() - started
        print(f"beside it     {len(records) / stored:.0f}/s stored while texts are embedded")
        print(
            f"with vectors  {len(records) / embedded:.0f}/s; peak memory of the server {peak_mib(server.pid):.0f} MiB"
        )


async def main() -> None:
    """Measure each way, on servers that leave nothing behind."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "throughput-passages" / "passages.jsonl.gz"
    if not file.is_file():
        sys.exit(f"There is no file {file}: name one of packed JSON lines with id, text, source and kind.")
    records = [record(passage) for passage in lines(file)]
    for measured in (in_batches, as_a_stream, one_by_one, with_vectors):
        print(machine())
        await measured(records)


if __name__ == "__main__":
    asyncio.run(main())
