"""Two versions of Likewise beside each other: this tree, and another checkout of it with an environment of its own.

    python -m benchmarks.versions ../other [passages.jsonl.gz] [--turns 1.0] [--only PART ...]

A server of each is asked the same over HTTP, in turns of a fraction of a second, so that other load on the machine
falls on both. A ratio is the other's time over this one's: above 1 this tree is faster. The first is the median of all
turns' ratios by the clock, the second that of all processor time of server and Postgres together.
"""

import argparse
import asyncio
import contextlib
import itertools
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.ingest import in_bodies, record
from benchmarks.stored import ProcessorTime
from benchmarks.surroundings import DATA, MODELS_FOLDER, Caller, lines, machine
from likewise.testing import LiveServer, open_folder

COLLECTIONS = "/api/v1/collections"
SEARCHED, QUERY_WORDS = 4_000, 12
# A turn of 20, some 60 ms, left one run in three 4 % off another.
QUESTIONS_A_TURN = 40
SECONDS_TO_EMBED = 600.0


@dataclass(frozen=True)
class Version:
    """A server of one tree, and the processor time that it uses."""

    server: LiveServer
    processor: ProcessorTime

    async def ask(self, path: str, bodies: Sequence[bytes], callers: int = 1) -> None:
        """Send bodies, by so many callers at a time; RuntimeError if one is refused."""
        left = iter(bodies)

        async def send(caller: Caller) -> None:
            for body in left:
                status, answer = await caller.post(path, body)
                if status >= 300:
                    raise RuntimeError(f"{path} answered {status}: {answer[:300]!r}")

        await asyncio.gather(*(send(Caller(self.server.url)) for _ in range(callers)))

    async def until_embedded(self, collection: str) -> None:
        """Return once no content of a collection waits for its vector."""
        caller = Caller(self.server.url)
        async with asyncio.timeout(SECONDS_TO_EMBED):
            while True:
                _, answer = await caller.get(f"{COLLECTIONS}/{collection}/stats")
                if orjson.loads(answer)["waiting"] == 0:
                    return
                await asyncio.sleep(0.02)


Pair = tuple[Version, Version]


class Comparison:
    """Both versions' servers, and how often each thing is measured."""

    def __init__(self, other: Path, passages: Sequence[dict[str, Any]], turns: float) -> None:
        self._other, self._passages, self._turns = other, passages, turns
        self._numbers = itertools.count(1)

    @contextlib.asynccontextmanager
    async def _servers(self, **settings: str) -> AsyncIterator[Pair]:
        async with contextlib.AsyncExitStack() as stack:
            here = [await stack.enter_async_context(_serving(tree, settings)) for tree in (self._other, None)]
            yield here[0], here[1]

    def _texts(self, words: int) -> Iterator[str]:
        """New texts of so many words at most, no two alike."""
        for passage in itertools.cycle(self._passages):
            yield f"{next(self._numbers)} {' '.join(passage['text'].split()[:words])}"

    async def _compare(
        self, name: str, pair: Pair, turns: int, turn: Callable[[], Callable[[Version], Awaitable[None]]]
    ) -> None:
        """Give both the same work in turns, each first in every second one, and print the line of the ratios."""
        ratios: list[float] = []
        used = [0.0, 0.0]
        for number in range(max(4, round(turns * self._turns)) + 1):
            work = turn()
            seconds = [0.0, 0.0]
            for which in (0, 1) if number % 2 else (1, 0):
                before, started = pair[which].processor.seconds(), time.perf_counter()
                await work(pair[which])
                seconds[which] = time.perf_counter() - started
                used[which] += pair[which].processor.seconds() - before if number else 0.0
            if number:  # the first warms up
                ratios.append(seconds[0] / seconds[1])
        low, _, high = statistics.quantiles(ratios, n=4)
        processor = used[0] / used[1] if used[1] else float("nan")
        print(
            f"{name:<44} {statistics.median(ratios):.3f} by the clock ({low:.2f} to {high:.2f}), "
            f"{processor:.3f} by processor time, {len(ratios)} turns",
            flush=True,
        )

    async def embedding(self) -> None:
        """New texts, many in a request."""
        async with self._servers() as pair:
            texts = self._texts(120)

            def batch() -> Callable[[Version], Awaitable[None]]:
                body = _texts_body(list(itertools.islice(texts, 256)))
                return lambda one: one.ask("/v1/embeddings", [body])

            await self._compare("256 new texts in a request", pair, 24, batch)

    async def serving(self) -> None:
        """Requests of one text: known to the cache, new, and new from many callers."""
        async with self._servers() as pair:
            texts = self._texts(40)
            cached = [_texts_body(next(texts))] * 200

            def single(count: int, callers: int) -> Callable[[], Callable[[Version], Awaitable[None]]]:
                def turn() -> Callable[[Version], Awaitable[None]]:
                    bodies = [_texts_body(text) for text in itertools.islice(texts, count)]
                    return lambda one: one.ask("/v1/embeddings", bodies, callers)

                return turn

            await self._compare(
                "one cached text a request", pair, 60, lambda: lambda one: one.ask("/v1/embeddings", cached)
            )
            await self._compare("one new text a request", pair, 60, single(20, 1))
            await self._compare("one new text a request, 32 callers", pair, 40, single(192, 32))

    async def ingest(self) -> None:
        """Records: new, unchanged, one by one, and with their vectors."""
        async with self._servers(LIKEWISE_EMBED_WORKER="false") as pair:
            await _make(pair, "passages")
            path = f"{COLLECTIONS}/passages/records"
            parts = [self._passages[at : at + 2_048] for at in range(0, len(self._passages) - 2_047, 2_048)]
            new = (in_bodies([self._anew(one) for one in part]) for part in itertools.cycle(parts))
            same = itertools.cycle([in_bodies([record(one) for one in part]) for part in parts[:4]])
            for bodies in itertools.islice(same, 4):
                for one in pair:
                    await one.ask(path, bodies)
            singles = (orjson.dumps([self._anew(one)]) for one in itertools.cycle(self._passages))
            measured: list[tuple[str, int, int, Callable[[], Sequence[bytes]]]] = [
                ("records, new, batches of 512", 24, 2, lambda: next(new)),
                ("records, unchanged", 40, 2, lambda: next(same)),
                ("records, one by one, 16 callers", 40, 16, lambda: list(itertools.islice(singles, 200))),
            ]
            for name, turns, callers, bodies_of in measured:
                await self._compare(name, pair, turns, _asked(path, bodies_of, callers))
        async with self._servers(LIKEWISE_CACHE_BYTES="0") as pair:
            await _make(pair, "embedded")
            texts = itertools.cycle(self._passages)

            def turn() -> Callable[[Version], Awaitable[None]]:
                bodies = in_bodies([self._anew(one) for one in itertools.islice(texts, 512)])

                async def stored(one: Version) -> None:
                    await one.ask(f"{COLLECTIONS}/embedded/records", bodies, 2)
                    await one.until_embedded("embedded")

                return stored

            await self._compare("records with their vectors", pair, 12, turn)

    def _anew(self, passage: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        return {**record(passage), "id": str(number), "text": f"{passage['text']} {number}"}

    async def search(self) -> None:
        """Searches in each mode, with a filter, and from many callers; each query is embedded."""
        await self._searches("new queries", cache_bytes=0)

    async def repeated(self) -> None:
        """The same searches, whose queries were asked before."""
        await self._searches("known queries", cache_bytes=100_000_000)

    async def _searches(self, queries: str, cache_bytes: int) -> None:
        async with self._servers(LIKEWISE_CACHE_BYTES=str(cache_bytes)) as pair:
            await _make(pair, "searched", {"policy": {"indexed": ["kind"]}})
            for one in pair:
                bodies = in_bodies([record(passage) for passage in self._passages[:SEARCHED]])
                await one.ask(f"{COLLECTIONS}/searched/records", bodies, 2)
                await one.until_embedded("searched")
            for name, options in (
                ("hybrid", {}),
                ("dense", {"mode": "dense"}),
                ("lexical", {"mode": "lexical"}),
                ("hybrid, filtered", {"filters": {"kind": self._passages[0]["kind"]}}),
                ("hybrid, 8 callers", {}),
            ):
                turn = _asked(f"{COLLECTIONS}/searched/search", self._questions(options), 8 if "callers" in name else 1)
                await self._compare(f"search, {name}, {queries}", pair, 60, turn)

    def _questions(self, options: dict[str, Any]) -> Callable[[], list[bytes]]:
        asked = itertools.cycle(self._passages[SEARCHED : SEARCHED + 200])
        return lambda: [
            orjson.dumps({"query": " ".join(one["text"].split()[:QUERY_WORDS]), "limit": 10, **options})
            for one in itertools.islice(asked, QUESTIONS_A_TURN)
        ]


def _asked(
    path: str, bodies_of: Callable[[], Sequence[bytes]], callers: int
) -> Callable[[], Callable[[Version], Awaitable[None]]]:
    def turn() -> Callable[[Version], Awaitable[None]]:
        bodies = bodies_of()
        return lambda one: one.ask(path, bodies, callers)

    return turn


def _texts_body(texts: str | Sequence[str]) -> bytes:
    return orjson.dumps({"input": texts, "encoding_format": "base64"})


async def _make(pair: Pair, collection: str, more: dict[str, Any] | None = None) -> None:
    for one in pair:
        await one.ask(COLLECTIONS, [orjson.dumps({"name": collection, **(more or {})})])


@contextlib.asynccontextmanager
async def _serving(tree: Path | None, settings: dict[str, str]) -> AsyncIterator[Version]:
    """A server of a tree's own environment, or of this one."""
    folder = open_folder()
    # not the current folder but the environment says which tree it is
    live = LiveServer(folder, {"LIKEWISE_MODELS_DIR": str(MODELS_FOLDER), "PYTHONSAFEPATH": "1", **settings})
    if tree is not None:
        live.interpreter = str(tree / ".venv" / "bin" / "python")
    try:
        async with live.running():
            yield Version(live, ProcessorTime(live))
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


PARTS: Mapping[str, Callable[[Comparison], Awaitable[None]]] = {
    "embedding": Comparison.embedding,
    "serving": Comparison.serving,
    "ingest": Comparison.ingest,
    "search": Comparison.search,
    "repeated": Comparison.repeated,
}


async def run(arguments: argparse.Namespace) -> None:
    """Measure the parts one after the other."""
    comparison = Comparison(arguments.other.absolute(), lines(arguments.passages), arguments.turns)
    for part in arguments.only:
        await PARTS[part](comparison)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, help="a checkout whose .venv is installed")
    parser.add_argument("passages", type=Path, nargs="?", default=DATA / "throughput-passages" / "passages.jsonl.gz")
    parser.add_argument("--turns", type=float, default=1.0, help="more or fewer turns of each")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    if not (arguments.other / ".venv" / "bin" / "python").exists():
        sys.exit(f"{arguments.other} has no .venv: run `make .venv/installed` there.")
    print(machine())
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
