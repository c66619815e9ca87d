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

from benchmarks.ingest import STORE_ONLY, make_collection, record
from benchmarks.surroundings import DATA, Caller, fresh_server, lines, machine
from likewise.testing import LiveServer

RECORDS_A_WRITE = 50
SEARCHES_A_WRITE = 3
RAMP = (4, 8, 16, 32)
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
    for number in itertools.count():
        start = number * RECORDS_A_WRITE % (len(records) - RECORDS_A_WRITE)
        batch = records[start : start + RECORDS_A_WRITE]
        new = [{**one, "id": f"{one['id']} {number}", "text": f"{one['text']} {number}"} for one in batch]
        yield f"{COLLECTION}/records", orjson.dumps(new)
        for one in batch[:SEARCHES_A_WRITE]:
            yield f"{COLLECTION}/search", question(one["text"])


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


def resident_mib(pid: int) -> float:
    """Memory that a process has resident, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def peak(url: str, work: Iterator[tuple[str, bytes]]) -> float:
    """The most requests a second that get done."""
    rates = []
    for clients in RAMP:
        outcome = await closed(url, work, clients, RAMP_SECONDS)
        rates.append(len(outcome.done) / RAMP_SECONDS)
        print(f"{clients:>4} clients  {rates[-1]:.0f}/s done, p99 {percentile(outcome.done, 0.99):.0f} ms")
    return max(rates)


async def overloaded(
    server: LiveServer, records: list[dict[str, Any]], work: Iterator[tuple[str, bytes]], most: float
) -> None:
    """Five times the peak, and what is said of it."""
    asked, before = Outcome(), resident_mib(server.pid)
    asking = asyncio.create_task(interactive(server.url, records, asked))
    outcome = await offered(server.url, work, TIMES * most, OVERLOAD_SECONDS)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    goodput = len(outcome.done) / OVERLOAD_SECONDS
    quick, slow = percentile(outcome.refused, 0.5), percentile(outcome.refused, 0.99)
    usual, slowest = percentile(asked.done, 0.5), percentile(asked.done, 1)
    print(f"offered       {TIMES * most:.0f}/s; {outcome.unsent} not sent, {outcome.failed} failed")
    print(
        f"goodput       {goodput:.0f}/s, {goodput / most:.2f} of the peak; p99 {percentile(outcome.done, 0.99):.0f} ms"
    )
    print(f"refused       {len(outcome.refused)}, p50 {quick:.0f} ms, p99 {slow:.0f} ms")
    print(f"interactive   {len(asked.done)} answered, p50 {usual:.0f} ms, slowest {slowest:.0f} ms")
    print(f"memory        {before:.0f} MiB before, {resident_mib(server.pid):.0f} MiB after")


async def main() -> None:
    """Find the peak, and offer more."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "throughput-passages" / "passages.jsonl.gz"
    if not file.is_file():
        sys.exit(f"There is no file {file}: name one of packed JSON lines with id, text, source and kind.")
    records = [record(passage) for passage in lines(file)]
    print(machine())
    async with fresh_server(STORE_ONLY) as server:
        await make_collection(server)
        work = requests(records)
        await overloaded(server, records, work, await peak(server.url, work))


if __name__ == "__main__":
    asyncio.run(main())
