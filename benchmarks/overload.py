"""What a server does with five times as much as it can: what it gets done, how soon it refuses, and what it holds.

    python -m benchmarks.overload [passages.jsonl.gz]

First as many clients as it takes to find the most that gets done, each with one request at a time: three searches by
words for each write of 50 records. Then five times that rate arrives, whatever becomes of it, and beside it one caller
who asks something four times a second and asks again if refused.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from benchmarks.ingest import STORE_ONLY, in_bodies, make_collection, record, store
from benchmarks.surroundings import DATA, Caller, fresh_server, lines, machine, resident_mib
from likewise.testing import LiveServer

RECORDS_A_WRITE = 50
SEARCHES_A_WRITE = 3
RAMP = (2, 4, 8, 16)
RAMP_SECONDS = 4.0
TIMES = 5
OVERLOAD_SECONDS = 15.0
# Who arrives when so many wait for an answer already would find no connection either.
MOST_AT_ONCE = 2_000
INTERACTIVE_PAUSE = 0.25
COLLECTION = "/api/v1/collections/passages"


@dataclass
class Outcome:
    """What became of the requests: seconds that each answer took, by whether it was what was asked for."""

    done: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: int = 0
    unsent: int = 0

    def add(self, status: int, seconds: float) -> None:
        """Count an answer."""
        if status == 200:
            self.done.append(seconds)
        elif status in (429, 503):
            self.refused.append(seconds)
        else:
            self.failed += 1


def percentile(seconds: list[float], share: float) -> float:
    """In milliseconds."""
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] * 1000 if seconds else float("nan")


def requests(records: list[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """Writes of records that are always new, and searches between them."""
    batches = [records[start : start + RECORDS_A_WRITE] for start in range(0, len(records), RECORDS_A_WRITE)]
    # Made ahead but for a number, so that this process takes little of what it measures.
    bodies = [
        orjson.dumps([{**one, "id": f"{one['id']} NEW", "text": f"{one['text']} NEW"} for one in batch])
        for batch in batches
    ]
    questions = [[question(one["text"]) for one in batch[:SEARCHES_A_WRITE]] for batch in batches]
    for number in itertools.count():
        place = number % len(batches)
        yield f"{COLLECTION}/records", bodies[place].replace(b" NEW", b" %d" % number)
        for body in questions[place]:
            yield f"{COLLECTION}/search", body


def question(text: str) -> bytes:
    """A search for some words of a text."""
    return orjson.dumps({"query": " ".join(text.split()[3:9]) or "anything", "mode": "lexical"})


async def closed(url: str, work: Iterator[tuple[str, bytes]], clients: int, seconds: float) -> Outcome:
    """So many clients, each with one request at a time."""
    outcome, end = Outcome(), time.perf_counter() + seconds

    async def client() -> None:
        caller = Caller(url)
        while time.perf_counter() < end:
            await ask(caller, next(work), outcome)

    await asyncio.gather(*(client() for _ in range(clients)))
    return outcome


async def offered(url: str, work: Iterator[tuple[str, bytes]], rate: float, seconds: float) -> Outcome:
    """So many requests a second, whatever becomes of those before."""
    outcome, free, tasks = Outcome(), list[Caller](), set[asyncio.Task[None]]()

    async def one() -> None:
        caller = free.pop() if free else Caller(url)
        await ask(caller, next(work), outcome)
        free.append(caller)

    began = time.perf_counter()
    for number in itertools.count():
        due = began + number / rate
        if due > began + seconds:
            break
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        if len(tasks) >= MOST_AT_ONCE:
            outcome.unsent += 1
            continue
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return outcome


async def ask(caller: Caller, request: tuple[str, bytes], outcome: Outcome) -> None:
    """Send one request and count its answer."""
    began = time.perf_counter()
    try:
        status, _ = await caller.post(*request)
    except (OSError, asyncio.IncompleteReadError):
        status = 0
    outcome.add(status, time.perf_counter() - began)


async def interactive(url: str, records: list[dict[str, Any]], outcome: Outcome) -> None:
    """Somebody who asks, and asks again if refused, until cancelled; the time is that of all tries together."""
    caller = Caller(url)
    for one in itertools.cycle(records):
        began = time.perf_counter()
        while (await caller.post(f"{COLLECTION}/search", question(one["text"])))[0] != 200:
            await asyncio.sleep(INTERACTIVE_PAUSE)
        outcome.add(200, time.perf_counter() - began)
        await asyncio.sleep(INTERACTIVE_PAUSE)


async def best(url: str, work: Iterator[tuple[str, bytes]]) -> int:
    """How many clients get the most done."""
    rates = {}
    for clients in RAMP:
        rates[clients] = await rate_of(url, work, clients)
        print(f"{clients:>4} clients  {rates[clients]:.0f}/s done")
    return max(rates, key=lambda clients: rates[clients])


async def rate_of(url: str, work: Iterator[tuple[str, bytes]], clients: int) -> float:
    """Requests a second that so many clients get done."""
    return len((await closed(url, work, clients, RAMP_SECONDS)).done) / RAMP_SECONDS


async def overloaded(server: LiveServer, records: list[dict[str, Any]], work: Iterator[tuple[str, bytes]]) -> None:
    """Five times the peak, between two measurements of the peak: the collection grows, and all becomes slower."""
    clients = await best(server.url, work)
    before = await rate_of(server.url, work, clients)
    asked, memory = Outcome(), resident_mib(server.pid)
    asking = asyncio.create_task(interactive(server.url, records, asked))
    outcome = await offered(server.url, work, TIMES * before, OVERLOAD_SECONDS)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    grown = resident_mib(server.pid)
    after = await rate_of(server.url, work, clients)
    goodput, most = len(outcome.done) / OVERLOAD_SECONDS, (before + after) / 2
    quick, slow = percentile(outcome.refused, 0.5), percentile(outcome.refused, 0.99)
    usual, slowest = percentile(asked.done, 0.5), percentile(asked.done, 1)
    print(f"peak          {before:.0f}/s before, {after:.0f}/s after, with {clients} clients")
    print(f"offered       {TIMES * before:.0f}/s; {outcome.unsent} not sent, {outcome.failed} failed")
    print(
        f"goodput       {goodput:.0f}/s, {goodput / most:.2f} of the peak; p99 {percentile(outcome.done, 0.99):.0f} ms"
    )
    print(f"refused       {len(outcome.refused)}, p50 {quick:.0f} ms, p99 {slow:.0f} ms")
    print(f"interactive   {len(asked.done)} answered, p50 {usual:.0f} ms, slowest {slowest:.0f} ms")
    print(f"memory        {memory:.0f} MiB before, {grown:.0f} MiB after")


async def main() -> None:
    """Find the peak, and offer more."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "throughput-passages" / "passages.jsonl.gz"
    if not file.is_file():
        sys.exit(f"There is no file {file}: name one of packed JSON lines with id, text, source and kind.")
    records = [record(passage) for passage in lines(file)]
    print(machine())
    async with fresh_server(STORE_ONLY) as server:
        await make_collection(server)
        await store(server, in_bodies(records), 2)
        await overloaded(server, records, requests(records))


if __name__ == "__main__":
    asyncio.run(main())
