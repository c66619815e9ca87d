"""How well search finds: nDCG@10 on SciFact's training claims, over HTTP, in each mode.

    python -m benchmarks.quality [folder with scifact/]

The server is a fresh one in a temporary folder. Published for all-MiniLM-L6-v2 on these claims: dense 0.660.
"""

import asyncio
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.surroundings import DATA, fresh_server, lines, machine

BATCH = 500
MODES = ("dense", "lexical", "hybrid")


def ndcg(ranked: Sequence[str], relevant: Mapping[str, int], depth: int = 10) -> float:
    """Normalised discounted cumulative gain, with linear gains (Järvelin and Kekäläinen, 2002)."""
    gain = sum(relevant.get(one, 0) / math.log2(place + 2) for place, one in enumerate(ranked[:depth]))
    best = sorted(relevant.values(), reverse=True)[:depth]
    ideal = sum(grade / math.log2(place + 2) for place, grade in enumerate(best))
    return gain / ideal if ideal else 0.0


def judgements(file: Path) -> dict[str, dict[str, int]]:
    """Relevant documents of each query, with their grades."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for line in file.read_text("utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        found[query][document] = int(grade)
    return dict(found)


async def store(client: httpx2.AsyncClient, corpus: Sequence[Mapping[str, Any]]) -> None:
    """Store the corpus and wait for its vectors."""
    (await client.post("/api/v1/collections", json={"name": "scifact"})).raise_for_status()
    for start in range(0, len(corpus), BATCH):
        records = [
            {"id": one["id"], "text": f"{one['title']} {one['text']}".strip()} for one in corpus[start : start + BATCH]
        ]
        (await client.post("/api/v1/collections/scifact/records", json=records)).raise_for_status()
    while (await client.get("/api/v1/collections/scifact/stats")).json()["waiting"]:
        await asyncio.sleep(0.5)
    # The background of the fusion is measured once the vectors are there.
    await asyncio.sleep(8)


async def ask(client: httpx2.AsyncClient, text: str, mode: str) -> tuple[list[str], float]:
    """The ids that a claim finds, and the milliseconds it took over HTTP."""
    started = time.perf_counter()
    answer = await client.post("/api/v1/collections/scifact/search", json={"query": text, "limit": 10, "mode": mode})
    took = (time.perf_counter() - started) * 1000
    return [hit["id"] for hit in answer.raise_for_status().json()["hits"]], took


async def measure(url: str, data: Path) -> None:
    """Print the table."""
    corpus, queries = lines(data / "corpus.jsonl.gz"), lines(data / "queries.jsonl.gz")
    relevant = judgements(data / "qrels.tsv")
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        await store(client, corpus)
        print(f"{len(corpus)} abstracts, {len(queries)} claims")
        print("mode      nDCG@10   p50 ms   p99 ms")
        for mode in MODES:
            answers = [(one["id"], await ask(client, one["text"], mode)) for one in queries if one["id"] in relevant]
            score = statistics.mean(ndcg(ids, relevant[query]) for query, (ids, _) in answers)
            times = sorted(took for _, (_, took) in answers)
            print(f"{mode:8}  {score:7.4f}  {times[len(times) // 2]:7.2f}  {times[int(len(times) * 0.99)]:7.2f}")


async def main() -> None:
    """Start a server, measure, and leave nothing behind."""
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "scifact"
    if not data.is_dir():
        sys.exit(f"There is no folder {data}: name one with corpus.jsonl.gz, queries.jsonl.gz and qrels.tsv.")
    print(machine())
    async with fresh_server() as server:
        await measure(server.url, data)


if __name__ == "__main__":
    asyncio.run(main())
