"""How fast search answers over HTTP, and how much of what it should find it finds.

    python -m benchmarks.search [data] [--size 20k|100k|1m] [--only unfiltered filters clients deletes] [--peers]
                                [--queries 300] [--keep FOLDER]

The corpus is of distinct real texts (benchmarks/corpora.py); beyond those there are, 1m has made ones, and says so. The
server is `likewise serve` in a process of its own, as the role that serves; the query's embedding is part of every
time, and no vector is remembered. Recall is against everything compared (benchmarks/exact.py). With `--keep` the
stored corpus is used again the next time; after the part `deletes` it is not.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks import corpora
from benchmarks.corpora import Corpus, Floats
from benchmarks.exact import Mask, Vectors, Words, agreement
from benchmarks.stored import NAME, Client, ProcessorTime, Stored, add, as_owner, serving, store
from benchmarks.surroundings import DATA, machine
from likewise.db.maintenance import DEAD_SHARE
from likewise.testing import LiveServer

SIZES = {"20k": 20_000, "100k": 100_000, "1m": 1_000_000}
PARTS = ("unfiltered", "filters", "clients", "deletes")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "likewise-benchmarks"
LIMIT, DEEP = 10, 100
WARM_UP = 20
CLIENTS = 4
# The cluster that filters ask for has about this share of all.
CLUSTER_SHARE = 0.08
DELETED_SHARE = 0.1
REBUILT_WITHIN_SECONDS = 300.0


@dataclass(frozen=True)
class Filtered:
    """A filter, which records it lets through, and the queries (their places) that are asked with it."""

    name: str
    filters: dict[str, Any] | None
    allowed: Mask
    queries: Sequence[int]


@dataclass
class Asked:
    """What some queries brought: the hits' places, the client's milliseconds, the server's, and processor seconds."""

    found: list[list[int]] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    cpu: float = 0.0

    def short(self, wanted: int) -> int:
        """How many answers had fewer hits than were wanted."""
        return sum(len(hits) < wanted for hits in self.found)


@dataclass
class Truth:
    """What should be found, and what the fusion needs to know."""

    vectors: Vectors
    words: Words
    background: float


@dataclass
class Table:
    """The rows of figures, printed as they come, and as Markdown in the end."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    HEAD = (
        "mode",
        "filter",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "server p50",
        "cpu ms",
        "recall@10",
        "recall@100",
        "too few",
    )

    def add(self, mode: str, name: str, asked: Asked, short: int, shallow: float, deep: float | None = None) -> None:
        """One row; `cpu` is processor time a query. A hybrid's recall is its agreement with fused exact rankings."""
        p50, p95, p99 = (_percentile(asked.ms, one) for one in (50, 95, 99))
        took, cpu = statistics.median(asked.took), 1000 * asked.cpu / len(asked.ms)
        deeper = "" if deep is None else f"{deep:.3f}"
        self.rows.append(
            (mode, name, *(f"{one:.1f}" for one in (p50, p95, p99, took, cpu)), f"{shallow:.3f}", deeper, str(short))
        )
        if len(self.rows) == 1:
            print(_columns(self.HEAD))
        print(_columns(self.rows[-1]))

    def markdown(self) -> str:
        """For docs/benchmarks.md."""
        rule = ["---", "---", *["---:"] * (len(self.HEAD) - 2)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.HEAD, rule, *self.rows))


class Bench:
    """One corpus on one server, asked in all ways."""

    def __init__(self, server: LiveServer, corpus: Corpus, truth: Truth, queries: int) -> None:
        self.url, self.corpus, self.truth = server.url, corpus, truth
        self.client = Client(server.url)
        self._processor = ProcessorTime(server)
        self.table = Table()
        self._queries = queries
        self._turn = cycle(range(len(corpus.queries)))

    def unfiltered(self) -> None:
        """Each mode over everything; words once more with queries of common words only."""
        whole = self._filtered("none", None, np.ones(len(self.corpus), np.bool_))
        for mode in ("hybrid", "dense", "lexical"):
            self._row(mode, whole)
        self._hybrid_row("common words", self.corpus.common, self.corpus.common_vectors, whole)
        self._words_row("common words", self.corpus.common, whole)

    def filters(self) -> None:
        """Random filters of three sizes, and a cluster of the vectors asked from the others."""
        share, cluster = self.corpus.share, self.corpus.cluster
        counted = np.bincount(cluster, minlength=corpora.CLUSTERS) / len(cluster)
        chosen = int(np.argmin(np.abs(counted - CLUSTER_SHARE)))
        elsewhere = np.flatnonzero(self.corpus.query_cluster != chosen)
        for percent in (1, 10, 50):
            allowed = share < percent
            one = self._filtered(f"{percent} % at random", {"share": {"$lt": percent}}, allowed)
            for mode in ("hybrid", "dense", "lexical"):
                self._row(mode, one)
        name = f"a cluster of {100 * counted[chosen]:.0f} %"
        one = self._filtered(name, {"cluster": chosen}, cluster == chosen, elsewhere)
        for mode in ("hybrid", "dense", "lexical"):
            self._row(mode, one)

    def clients(self) -> None:
        """How many answers a second several clients get together."""
        for mode in ("hybrid", "dense", "lexical"):
            texts = [self.corpus.queries[one] for one in islice(self._turn, CLIENTS * self._queries)]
            parts = [texts[at::CLIENTS] for at in range(CLIENTS)]
            results = [Asked() for _ in parts]
            threads = [
                threading.Thread(target=ask_all, args=(Client(self.url), part, mode, None, LIMIT, asked))
                for part, asked in zip(parts, results, strict=True)
            ]
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            taken = time.perf_counter() - started
            ms = [one for asked in results for one in asked.ms]
            print(
                f"{CLIENTS} clients, {mode:8} {len(ms) / taken:6.0f} answers/s, "
                f"p50 {_percentile(ms, 50):.1f} ms, p99 {_percentile(ms, 99):.1f} ms"
            )

    def recalls(self, vectors: Vectors, words: Words, allowed: Mask) -> str:
        """How much is found now, in a sentence."""
        chosen = list(islice(self._turn, self._queries))
        texts, asked_with = [self.corpus.queries[one] for one in chosen], self.corpus.query_vectors[chosen]
        dense = ask_all(self.client, texts, "dense", None, LIMIT, Asked())
        deep = ask_all(self.client, texts, "dense", None, DEEP, Asked())
        lexical = ask_all(self.client, texts, "lexical", None, DEEP, Asked())
        shallow = vectors.recall(vectors.best(asked_with, LIMIT, allowed), asked_with, dense.found)
        deeper = vectors.recall(vectors.best(asked_with, DEEP, allowed), asked_with, deep.found)
        gone = sum(not allowed[one] for asked in (dense, deep, lexical) for hits in asked.found for one in hits)
        return (
            f"dense p50 {_percentile(dense.ms, 50):.1f} ms, recall@10 {shallow:.3f}, recall@100 {deeper:.3f}, "
            f"lexical recall@100 {words.recall(texts, DEEP, allowed, lexical.found):.3f}, "
            f"too few {dense.short(LIMIT) + deep.short(DEEP)}, deleted ones found {gone}"
        )

    def _filtered(
        self, name: str, filters: dict[str, Any] | None, allowed: Mask, queries: Sequence[int] | None = None
    ) -> Filtered:
        return Filtered(name, filters, allowed, range(len(self.corpus.queries)) if queries is None else list(queries))

    def _row(self, mode: str, one: Filtered) -> None:
        """The next queries of the turn: for ten, for the times, and for a hundred, for the deeper recall."""
        fitting = set(one.queries)
        chosen = list(islice((query for query in self._turn if query in fitting), self._queries))
        texts, vectors = [self.corpus.queries[query] for query in chosen], self.corpus.query_vectors[chosen]
        if mode == "lexical":
            self._words_row(one.name, texts, one)
        elif mode == "dense":
            self._dense_row(one.name, texts, vectors, one)
        else:
            self._hybrid_row(one.name, texts, vectors, one)

    def _hybrid_row(self, name: str, texts: Sequence[str], vectors: Floats, one: Filtered) -> None:
        asked = self._timed(texts, "hybrid", one)
        truth = self.truth
        agreed = agreement(
            truth.vectors, truth.words, (texts, vectors), LIMIT, one.allowed, truth.background, asked.found
        )
        self.table.add("hybrid", name, asked, asked.short(min(LIMIT, int(one.allowed.sum()))), agreed)

    def _dense_row(self, name: str, texts: Sequence[str], vectors: Floats, one: Filtered) -> None:
        asked = self._timed(texts, "dense", one)
        deeper = ask_all(self.client, texts, "dense", one.filters, DEEP, Asked())
        fitting, exact = int(one.allowed.sum()), self.truth.vectors
        short = asked.short(min(LIMIT, fitting)) + deeper.short(min(DEEP, fitting))
        shallow = exact.recall(exact.best(vectors, LIMIT, one.allowed), vectors, asked.found)
        deep = exact.recall(exact.best(vectors, DEEP, one.allowed), vectors, deeper.found)
        self.table.add("dense", name, asked, short, shallow, deep)

    def _words_row(self, name: str, texts: Sequence[str], one: Filtered) -> None:
        asked = self._timed(texts, "lexical", one)
        deeper = ask_all(self.client, texts, "lexical", one.filters, DEEP, Asked())
        words, short = self.truth.words, 0
        for text, hits, more in zip(texts, asked.found, deeper.found, strict=True):
            matching = int(((words.scores(text) > 0) & one.allowed).sum())
            short += (len(hits) < min(LIMIT, matching)) + (len(more) < min(DEEP, matching))
        shallow = words.recall(texts, LIMIT, one.allowed, asked.found)
        self.table.add("lexical", name, asked, short, shallow, words.recall(texts, DEEP, one.allowed, deeper.found))

    def _timed(self, texts: Sequence[str], mode: str, one: Filtered) -> Asked:
        """The answers, after some to other queries that are not counted."""
        others = [self.corpus.queries[query] for query in islice(self._turn, WARM_UP)]
        ask_all(self.client, others, mode, one.filters, LIMIT, Asked())
        before = self._processor.seconds()
        asked = ask_all(self.client, texts, mode, one.filters, LIMIT, Asked())
        asked.cpu = self._processor.seconds() - before
        strangers = sum(not one.allowed[place] for hits in asked.found for place in hits)
        if strangers:
            print(f"WRONG: {strangers} hits do not fit the filter {one.name}")
        return asked


def ask_all(
    client: Client, queries: Sequence[str], mode: str, filters: Mapping[str, Any] | None, limit: int, into: Asked
) -> Asked:
    """Ask one query after another."""
    for query in queries:
        body = {"query": query, "mode": mode, "limit": limit, "filters": filters}
        started = time.perf_counter()
        read = client.post(f"/{NAME}/search", body)
        into.ms.append((time.perf_counter() - started) * 1000)
        answer = orjson.loads(read)
        assert not answer["degraded"], answer["degraded"]
        into.took.append(answer["took_ms"])
        into.found.append([int(hit["id"]) for hit in answer["hits"]])
    return into


async def delete_and_go_on(bench: Bench, stored: Stored, folder: Path) -> None:
    """Delete a tenth, search at once and when the index is built anew; then store as many again."""
    corpus = bench.corpus
    before = await stored.sizes()
    print(f"before    {before}")
    gone = np.random.default_rng(corpora.SEED).permutation(len(corpus))[: int(DELETED_SHARE * len(corpus))]
    allowed = np.ones(len(corpus), np.bool_)
    allowed[gone] = False
    started = time.perf_counter()
    for place in gone:
        bench.client.delete(str(place))
    taken = time.perf_counter() - started
    print(f"deleted {len(gone)} records one by one in {taken:.0f} s ({len(gone) / taken:.0f}/s)")
    words = await read_words(stored)
    print(f"at once   {bench.recalls(bench.truth.vectors, words, allowed)}")
    if before.index_id is not None:
        started = time.perf_counter()
        rebuilt = await until_rebuilt(stored, before.index_id, len(corpus))
        after = f"after {time.perf_counter() - started:.0f} s" if rebuilt else "NOT"
        print(f"the index was {after} built anew: {await stored.sizes()}")
        print(f"rebuilt   {bench.recalls(bench.truth.vectors, words, allowed)}")
    fresh = corpus.spare[: len(gone)]
    if not fresh:
        print("there are no more real texts to store in their place")
        return
    add(bench.client, corpus, fresh, len(corpus))
    while bench.client.stats()["waiting"]:
        await asyncio.sleep(1)
    print(f"stored {len(fresh)} others, embedded by the server: {await stored.sizes()}")
    whole = Vectors(np.concatenate([corpus.vectors, corpus.spare_vectors[: len(fresh)]]))
    allowed = np.concatenate([allowed, np.ones(len(fresh), np.bool_)])
    print(f"refilled  {bench.recalls(whole, await read_words(stored), allowed)}")


async def until_rebuilt(stored: Stored, old: int, contents: int) -> bool:
    """Whether the vectors' index became another in time, with hardly any of what is deleted."""
    deadline = time.monotonic() + REBUILT_WITHIN_SECONDS
    while time.monotonic() < deadline:
        now = (await stored.sizes()).index_id
        if now is not None and now != old and await stored.dead() < DEAD_SHARE * contents:
            return True
        await asyncio.sleep(1)
    return False


async def read_words(stored: Stored) -> Words:
    """The words' weights as they are stored now."""
    total, _ = await stored.totals()
    return await Words.read(stored.owner, stored.collection, await stored.places(), total)


@contextmanager
def folder_of(kept: Path | None, size: int) -> Iterator[Path]:
    """The folder of the database and its corpus: a kept one, or one that is gone afterwards."""
    if kept is not None:
        folder = kept / str(size)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="likewise-"))
    # As root the server runs as another user, who must be able to enter.
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def obtained(folder: Path, size: int, data: Path) -> Corpus:
    """The corpus, stored: as it was kept, or made now."""
    whole = folder / "stored"
    if whole.exists():
        print("the corpus and its database are of an earlier run")
        return corpora.load(folder)
    shutil.rmtree(folder / "data", ignore_errors=True)
    corpus = await corpora.corpus(size, data, CACHE, spare=int(DELETED_SHARE * size))
    corpora.save(folder, corpus)
    await store(folder / "data", corpus)
    whole.touch()
    return corpus


async def run(arguments: argparse.Namespace) -> None:
    """Store, measure, print."""
    # Into a file as well a line is seen when it is there.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    size = SIZES[arguments.size]
    with folder_of(arguments.keep, size) as folder:
        corpus = await obtained(folder, size, arguments.data)
        print(machine(folder))
        print(f"load of the machine before: {os.getloadavg()[0]:.1f} processes")
        describe(corpus)
        async with serving(folder / "data") as server, as_owner(folder / "data") as owner:
            stored = await Stored.named(owner)
            built = await stored.until_indexed(len(corpus), corpus.vectors.shape[1])
            bench_client = Client(server.url)
            how_long = f", built in {built:.0f} s" if built else ""
            print(f"index: {bench_client.stats()['index']}{how_long}; {await stored.sizes()}")
            total, background = await stored.totals()
            words = await Words.read(owner, stored.collection, await stored.places(), total)
            bench = Bench(server, corpus, Truth(Vectors(corpus.vectors), words, background), arguments.queries)
            for part in ("unfiltered", "filters", "clients"):
                if part in arguments.only:
                    getattr(bench, part)()
            if arguments.peers:
                from benchmarks import peers  # noqa: PLC0415 - only where those libraries are installed

                await peers.compare(corpus, bench.truth.vectors, folder, arguments.queries)
            if "deletes" in arguments.only:
                (folder / "stored").unlink()
                await delete_and_go_on(bench, stored, folder)
        print(f"load of the machine after: {os.getloadavg()[0]:.1f} processes")
        if bench.table.rows:
            print(f"\n{bench.table.markdown()}")


def describe(corpus: Corpus) -> None:
    """Print what the corpus is made of."""
    print(f"{len(corpus)} distinct texts, {corpus.real} of them real, of {len(corpus.sources)} kinds:")
    for source, count in corpus.sources.items():
        print(f"  {count:7} {source}")
    made = len(corpus) - corpus.real
    if made:
        print(f"  {made:7} made: a real text's words shuffled with three of another's; its vector moved at random to a")
        print(f"          cosine of {corpora.PERTURBED_COSINE} (these vectors are not the model's)")
    print(f"{len(corpus.queries)} queries: claims of SciFact, and sentences held back")


def _percentile(values: Sequence[float], percent: int) -> float:
    return float(np.percentile(values, percent))


def _columns(row: Sequence[str]) -> str:
    mode, name, *figures = row
    return f"{mode:8} {name:18}" + "".join(f"{one:>12}" for one in figures)


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "data", nargs="?", type=Path, default=DATA, help="folder with throughput-passages/ and scifact/"
    )
    parser.add_argument("--size", choices=SIZES, default="100k")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure; all if absent")
    parser.add_argument("--peers", action="store_true", help="measure Chroma and LanceDB beside Likewise, as libraries")
    parser.add_argument("--queries", type=int, default=300, help="queries of each measure")
    parser.add_argument("--keep", type=Path, help="folder to keep the stored corpus in, and to find it in")
    return parser.parse_args(argv)


if __name__ == "__main__":
    asyncio.run(run(parsed(sys.argv[1:])))
