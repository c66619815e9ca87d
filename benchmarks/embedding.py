"""Texts to vectors: speed beside sentence-transformers, agreement with it, and the time of one query.

    python -m benchmarks.embedding [folder with throughput-passages/ and sts-benchmark-dev/]

Each side gets the same 2,000 passages in parts, in turns, so that other load on the machine falls on all. Ours go the
whole way through `Embedder` in the bulk lane without its cache. Sentence-transformers (PyTorch in fp32, batches of 32)
takes part where it is installed. `cpu` is texts per second of processor time, over all cores: it is what remains
comparable when the machine is busy.
"""

import asyncio
import importlib.util
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.surroundings import DATA, MODELS_FOLDER, lines, machine
from likewise.embedding import weights
from likewise.embedding.embedder import Embedder
from likewise.embedding.models import MODELS
from likewise.embedding.provider import Matrix
from likewise.settings import Settings, load_settings

SEED, PASSAGES, LEAST_WORDS = 7, 2_000, 20
PART, ROUNDS = 1_000, 4
QUERY = "how do I find out whether two short sentences mean the same simple thing"  # 16 tokens, special ones included
QUERIES = 400

Side = Callable[[Sequence[str]], Awaitable[Matrix]]


def sample(data: Path) -> list[str]:
    """The passages, the same ones each time."""
    rows = lines(data / "throughput-passages" / "passages.jsonl.gz")
    texts = [row["text"] for row in rows if row["words"] >= LEAST_WORDS]
    return random.Random(SEED).sample(texts, PASSAGES)


def ours(embedder: Embedder) -> Side:
    """Likewise, all the way."""

    async def embed(texts: Sequence[str]) -> Matrix:
        return (await embedder.embed(1, texts, lane="bulk", use_cache=False)).vectors

    return embed


def sentence_transformers(folder: Path, threads: int) -> Side | None:
    """The model as its makers run it; None where that is not installed."""
    if not importlib.util.find_spec("sentence_transformers") or not importlib.util.find_spec("torch"):
        return None
    import torch  # noqa: PLC0415 - only where it is installed
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(folder), device="cpu")

    async def embed(texts: Sequence[str]) -> Matrix:
        made: Matrix = model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return made

    return embed


async def race(sides: dict[str, Side], texts: Sequence[str]) -> dict[str, Matrix]:
    """Print texts a second of each side, and how many times the last side's that is; returns the vectors."""
    parts = [texts[start : start + PART] for start in range(0, len(texts), PART)]
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    vectors: dict[str, list[Matrix]] = {}
    for embed in sides.values():
        await embed(parts[0][:64])
    for _ in range(ROUNDS):
        vectors = {name: [] for name in sides}
        for part in parts:
            for name, embed in sides.items():
                started, used = time.perf_counter(), time.process_time()
                vectors[name].append(await embed(part))
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    base = list(sides)[-1]
    for name in sides:
        ratio, cpu_ratio = (
            statistics.median(b / a for a, b in zip(times[name], times[base], strict=True)) for times in (wall, cpu)
        )
        print(
            f"{name:22} {PART / statistics.median(wall[name]):6.0f} texts/s  x{ratio:.2f}"
            f"    cpu {PART / statistics.median(cpu[name]):6.0f} texts/s  x{cpu_ratio:.2f}"
        )
    return {name: np.concatenate(made) for name, made in vectors.items()}


def ranks(values: Sequence[float]) -> Matrix:
    """Ranks with ties averaged."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    result: Matrix = (last - (counts - 1) / 2)[inverse].astype(np.float32)
    return result


async def spearman(embed: Side, pairs: Sequence[dict[str, Any]]) -> float:
    """Spearman's correlation of cosine similarity with people's scores, times 100."""
    a, b = await embed([pair["a"] for pair in pairs]), await embed([pair["b"] for pair in pairs])
    similarity = np.sum(a * b, axis=1)
    return 100 * float(np.corrcoef(ranks(similarity.tolist()), ranks([pair["score"] for pair in pairs]))[0, 1])


async def query_times(embedder: Embedder) -> list[float]:
    """Milliseconds of single queries, back to back, sorted."""
    times = []
    for _ in range(QUERIES):
        started = time.perf_counter()
        made = await embedder.embed(1, [QUERY], role="query", use_cache=False)
        times.append(1_000 * (time.perf_counter() - started))
    assert made.tokens[0] == 16
    return sorted(times[QUERIES // 10 :])


async def main(data: Path) -> None:
    """Run all three."""
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        embedders = {precision: Embedder(settings(Path(folder), precision, threads)) for precision in ("bf16", "f32")}
        model = weights.obtain(MODELS[0], settings(Path(folder), "auto", threads))
        sides = {f"likewise {precision}": ours(embedder) for precision, embedder in embedders.items()}
        other = sentence_transformers(model, threads)
        if other:
            sides["sentence-transformers"] = other
        print(machine())
        print(f"{PASSAGES} passages of {LEAST_WORDS} words or more, {threads} threads; medians of {ROUNDS} rounds")
        vectors = await race(sides, sample(data))
        for name in sides:
            cosine = np.sum(vectors[name] * vectors[list(sides)[-1]], axis=1)
            print(f"{name:22} cosine to the last: least {cosine.min():.6f}, mean {cosine.mean():.6f}")
        pairs = lines(data / "sts-benchmark-dev" / "pairs.jsonl.gz")
        for name, embed in sides.items():
            print(f"{name:22} STS-B dev, Spearman {await spearman(embed, pairs):.2f}")
        for precision, embedder in embedders.items():
            times = await query_times(embedder)
            p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
            print(
                f"likewise {precision:13} one query of 16 tokens: least {times[0]:.2f}, p50 {p50:.2f}, p99 {p99:.2f} ms"
            )
            await embedder.close()


def settings(folder: Path, precision: str, threads: int) -> Settings:
    """Settings for one precision."""
    return load_settings(data_dir=folder, models_dir=MODELS_FOLDER, precision=precision, threads=threads)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA))
