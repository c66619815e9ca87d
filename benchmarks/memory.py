"""How much memory a server holds after many batches of random shapes, and how fast it is meanwhile.

    python -m benchmarks.memory [--requests 3000] [--capacity -1 0]

3,000 requests of 1 to 16 texts of 3 to 300 words in random order, the same for each server, without a cache of vectors.
With more than one `--capacity` (shapes of batches that each graph keeps ready, 0: the runtime's own defaults, those of
its primitives too, -1: what Likewise says) a server of each runs, and they are asked in turns; rates are compared with
that of the last.
"""

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import orjson

from benchmarks.surroundings import MODELS_FOLDER, Caller, machine, resident_mib
from likewise.cli.main import run as likewise_program
from likewise.embedding.graphs import openvino
from likewise.testing import LiveServer, open_folder

SEED = 20_261_130
TEXTS, WORDS = (1, 16), (3, 300)
TURN = 50  # requests after which it is the next server's turn
CALLERS = 2
TOLD_EVERY = 500
# As many as the runtime keeps where nobody says anything else.
DEFAULT_CAPACITY = 5_000
DEFAULT_PRIMITIVES = 1_024
NAMES = {0: "runtime's", -1: "Likewise's"}


@dataclass
class Server:
    """One server, what it held after so many requests, and the seconds that its turns took."""

    capacity: int
    live: LiveServer
    callers: list[Caller] = field(default_factory=list)
    mib: dict[int, float] = field(default_factory=dict)
    texts: int = 0
    seconds: float = 0.0

    async def turn(self, bodies: Sequence[tuple[int, bytes]]) -> None:
        """Ask it some requests, as many at a time as there are callers."""
        left, started = iter(bodies), time.perf_counter()
        await asyncio.gather(*(self._ask(caller, left) for caller in self.callers))
        self.seconds += time.perf_counter() - started

    async def _ask(self, caller: Caller, left: Iterator[tuple[int, bytes]]) -> None:
        for texts, body in left:
            status, _ = await caller.post("/v1/embeddings", body)
            if status != 200:
                raise RuntimeError(f"The server answered {status}.")
            self.texts += texts


def requests(count: int) -> list[tuple[int, bytes]]:
    """Bodies of requests with their numbers of texts, of made-up words."""
    chance = random.Random(SEED)
    words = ["".join(chance.choices("aeioulnrst", k=chance.randint(2, 8))) for _ in range(5_000)]
    made = []
    for _ in range(count):
        texts = [" ".join(chance.choices(words, k=chance.randint(*WORDS))) for _ in range(chance.randint(*TEXTS))]
        made.append((len(texts), orjson.dumps({"input": texts, "encoding_format": "base64"})))
    return made


@contextlib.asynccontextmanager
async def serving(capacity: int) -> AsyncIterator[Server]:
    """A server whose runtime keeps so many shapes."""
    folder = open_folder()
    live = LiveServer(folder, {"LIKEWISE_MODELS_DIR": str(MODELS_FOLDER), "LIKEWISE_CACHE_BYTES": "0"})
    if capacity >= 0:
        live.program = ("benchmarks.memory", "--serve-with", str(capacity or DEFAULT_CAPACITY))
    try:
        async with live.running():
            yield Server(capacity, live, [Caller(live.url) for _ in range(CALLERS)])
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def run(count: int, capacities: Sequence[int]) -> None:
    """Ask all servers in turns, and tell what each holds."""
    bodies = requests(count)
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(capacity)) for capacity in capacities]
        for at in range(0, count, TURN):
            for server in servers:
                await server.turn(bodies[at : at + TURN])
                if (done := at + TURN) % TOLD_EVERY == 0:
                    server.mib[done] = resident_mib(server.live.pid)
        for server in servers:
            tell(server, servers[-1])


def tell(server: Server, other: Server) -> None:
    """One server's line."""
    held = "  ".join(f"{mib:.0f}" for mib in server.mib.values())
    ratio = server.mib[max(server.mib)] / server.mib[min(server.mib)]
    rate = server.texts / server.seconds
    beside = rate / (other.texts / other.seconds)
    shapes = NAMES.get(server.capacity, server.capacity)
    print(
        f"{shapes:>16} shapes  {held} MiB after each {TOLD_EVERY}; last / first {ratio:.2f}; "
        f"{rate:.0f} texts/s ({beside:.2f})",
        flush=True,
    )


def main() -> None:
    """Measure, or serve with another capacity."""
    if sys.argv[1:2] == ["--serve-with"]:
        openvino.MAX_SHAPES.update(dict.fromkeys(openvino.MAX_SHAPES, int(sys.argv[2])))
        if int(sys.argv[2]) == DEFAULT_CAPACITY:
            openvino.MAX_PRIMITIVES = DEFAULT_PRIMITIVES
        sys.argv[1:] = sys.argv[3:]
        likewise_program()
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--capacity", type=int, nargs="*", default=[-1], help="see above")
    arguments = parser.parse_args()
    print(machine())
    print(f"MALLOC_ARENA_MAX {os.environ.get('MALLOC_ARENA_MAX', 'unset')}")
    asyncio.run(run(arguments.requests, arguments.capacity))


if __name__ == "__main__":
    main()
