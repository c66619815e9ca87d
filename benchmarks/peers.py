"""Chroma and LanceDB beside Likewise, each as a library in this process, with the same vectors and the same queries.

Each gets its vectors and fields, builds its index, and answers with ids and texts. A query's vector is there before it
is asked: the others are given it, and Likewise has it in its cache of texts embedded before. Where there is a knob for
accuracy, a library is measured as it comes and with that turned up.
"""

import shutil
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromadb
import lancedb
import numpy as np
import pyarrow as pa
from chromadb.config import Settings as ChromaSettings
from lancedb.index import Bitmap, HnswSq

import likewise
from benchmarks.corpora import Corpus, Floats
from benchmarks.exact import Mask, Vectors
from benchmarks.stored import NAME
from benchmarks.surroundings import MODELS_FOLDER
from likewise.library import Collection
from likewise.settings import load_settings

LIMIT = 10
WARM_UP = 20
TURNED_UP = 200
CHROMA_BATCH = 5_000
TENTH = 10

Ask = Callable[[str, Floats, "Filter"], Awaitable[list[int]]]


@dataclass(frozen=True)
class Filter:
    """One filter in everybody's words, with the records that it lets through and the queries it is asked with."""

    name: str
    fields: dict[str, Any] | None
    sql: str | None
    allowed: Mask
    queries: Sequence[int]


async def compare(corpus: Corpus, exact: Vectors, folder: Path, queries: int) -> list[str]:
    """Measure all; returns the table in Markdown."""
    rows = ["| library | search | filter | p50 ms | p99 ms | recall@10 |", "| --- | --- | --- | ---: | ---: | ---: |"]
    filters = _filters(corpus, queries)

    async def measure(name: str, search: str, ask: Ask, asked: Sequence[Filter] = filters) -> None:
        for one in asked:
            times, found = await _timed(ask, corpus, one)
            best = exact.best(corpus.query_vectors[list(one.queries)], LIMIT, one.allowed)
            recall = exact.recall(best, corpus.query_vectors[list(one.queries)], found)
            told = f"{recall:.3f}" if search == "dense" else ""
            p50, p99 = statistics.median(times), float(np.percentile(times, 99))
            rows.append(f"| {name} | {search} | {one.name} | {p50:.1f} | {p99:.1f} | {told} |")
            print(rows[-1], flush=True)

    print("\n".join(rows))
    await _likewise(corpus, folder, filters, measure)
    await _chroma(corpus, folder / "chroma", measure)
    await _lancedb(corpus, folder / "lancedb", measure)
    return rows


def _filters(corpus: Corpus, queries: int) -> list[Filter]:
    cluster = int(np.argmin(np.abs(np.bincount(corpus.cluster) / len(corpus) - 0.08)))
    first = range(queries)
    elsewhere = np.flatnonzero(corpus.query_cluster != cluster)[:queries].tolist()
    return [
        Filter("none", None, None, np.ones(len(corpus), np.bool_), first),
        Filter(f"{TENTH} %", {"share": {"$lt": TENTH}}, f"share < {TENTH}", corpus.share < TENTH, first),
        Filter("a cluster", {"cluster": cluster}, f"cluster = {cluster}", corpus.cluster == cluster, elsewhere),
    ]


async def _timed(ask: Ask, corpus: Corpus, one: Filter) -> tuple[list[float], list[list[int]]]:
    times, found = [], []
    for query in [*one.queries[:WARM_UP], *one.queries]:
        started = time.perf_counter()
        hits = await ask(corpus.queries[query], corpus.query_vectors[query], one)
        times.append((time.perf_counter() - started) * 1000)
        found.append(hits)
    return times[WARM_UP:], found[WARM_UP:]


async def _likewise(
    corpus: Corpus, folder: Path, filters: Sequence[Filter], measure: Callable[..., Awaitable[None]]
) -> None:
    settings = load_settings(data_dir=folder / "data", models_dir=MODELS_FOLDER)
    async with likewise.open(settings, worker=False) as lw:
        texts = lw.collection(NAME)
        for query in {query for one in filters for query in one.queries}:
            await lw.embedder.embed(await lw.tenant(), [corpus.queries[query]], role="query")
        for mode in ("dense", "hybrid"):
            await measure("Likewise", mode, _asking(texts, mode))


def _asking(texts: Collection, mode: Any) -> Ask:
    async def ask(query: str, _: Floats, one: Filter) -> list[int]:
        found = await texts.search(query, mode=mode, limit=LIMIT, filters=one.fields)
        return [int(hit.id) for hit in found.hits]

    return ask


async def _chroma(corpus: Corpus, folder: Path, measure: Callable[..., Awaitable[None]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    client = chromadb.PersistentClient(str(folder), ChromaSettings(anonymized_telemetry=False))
    started = time.perf_counter()
    collection = client.create_collection(NAME, embedding_function=None, configuration={"hnsw": {"space": "cosine"}})
    for start in range(0, len(corpus), CHROMA_BATCH):
        part = slice(start, start + CHROMA_BATCH)
        collection.add(
            ids=[str(place) for place in range(start, min(start + CHROMA_BATCH, len(corpus)))],
            embeddings=corpus.vectors[part].astype(np.float32),
            documents=corpus.texts[part],
            metadatas=[
                {"share": int(share), "cluster": int(cluster)}
                for share, cluster in zip(corpus.share[part], corpus.cluster[part], strict=True)
            ],
        )
    print(f"Chroma {chromadb.__version__}: stored and indexed in {time.perf_counter() - started:.0f} s")

    async def ask(_: str, vector: Floats, one: Filter) -> list[int]:
        found = collection.query(
            query_embeddings=vector[None],
            n_results=LIMIT,
            where=one.fields,
            include=["documents", "metadatas", "distances"],
        )
        return [int(id_) for id_ in found["ids"][0]]

    await measure("Chroma", "dense", ask)
    collection.modify(configuration={"hnsw": {"ef_search": TURNED_UP}})
    await measure(f"Chroma, ef {TURNED_UP}", "dense", ask)
    shutil.rmtree(folder, ignore_errors=True)


async def _lancedb(corpus: Corpus, folder: Path, measure: Callable[..., Awaitable[None]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    table = await _lancedb_table(corpus, folder)

    def dense(ef: int | None) -> Ask:
        async def ask(_: str, vector: Floats, one: Filter) -> list[int]:
            near = table.query().nearest_to(vector).distance_type("cosine")
            query = near.limit(LIMIT).select(["id", "text", "_distance"])
            if ef is not None:
                query = query.ef(ef).refine_factor(2)
            return await _lancedb_ids(query, one)

        return ask

    async def hybrid(text: str, vector: Floats, one: Filter) -> list[int]:
        query = table.query().nearest_to(vector).distance_type("cosine").nearest_to_text(text).limit(LIMIT)
        return await _lancedb_ids(query, one)

    await measure("LanceDB", "dense", dense(None))
    await measure(f"LanceDB, ef {TURNED_UP}, refined", "dense", dense(TURNED_UP))
    await measure("LanceDB", "hybrid", hybrid)
    shutil.rmtree(folder, ignore_errors=True)


async def _lancedb_table(corpus: Corpus, folder: Path) -> Any:
    started = time.perf_counter()
    flat = pa.array(corpus.vectors.astype(np.float32).ravel())
    rows = pa.table(
        {
            "id": np.arange(len(corpus)),
            "text": corpus.texts,
            "share": corpus.share,
            "cluster": corpus.cluster,
            "vector": pa.FixedSizeListArray.from_arrays(flat, corpus.vectors.shape[1]),
        }
    )
    database = await lancedb.connect_async(folder)
    table = await database.create_table(NAME, rows)
    await table.create_index("vector", config=HnswSq(distance_type="cosine"))
    await table.create_index("text", config=lancedb.index.FTS())
    for name in ("share", "cluster"):
        await table.create_index(name, config=Bitmap())
    print(f"LanceDB {lancedb.__version__}: stored and indexed in {time.perf_counter() - started:.0f} s")
    return table


async def _lancedb_ids(query: Any, one: Filter) -> list[int]:
    if one.sql is not None:
        query = query.where(one.sql)
    return [int(row["id"]) for row in await query.to_list()]
