"""Texts to vectors: speed beside sentence-transformers, agreement with it, and how long one query or long text takes.

    python -m benchmarks.embedding [folder with throughput-passages/ and sts-benchmark-dev/]

Each side gets the same 2,000 passages in parts, in turns, so that other load on the machine falls on all. Ours go the
whole way through `Embedder` in the bulk lane without its cache. Sentence-transformers (PyTorch in fp32, batches of 32)
takes part where it is installed. `cpu` is texts per second of processor time, over all cores: it is what remains
comparable when the machine is busy. `of peak` is how fast the model's linear layers are computed, padding not counted,
as a share of one large matrix product through OpenVINO in bf16, which is measured in turns with the rest.
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
from likewise.embedding.embedder import Embedder
from likewise.embedding.files import weights
from likewise.embedding.files.folder import ModelFolder
from likewise.embedding.graphs.openvino import able, openvino, ops
from likewise.embedding.models import MODELS
from likewise.embedding.provider import MAX_CHARS, Matrix
from likewise.settings import Settings, load_settings

SEED, PASSAGES, LEAST_WORDS = 7, 2_000, 20
PART, ROUNDS = 1_000, 4
QUERY = "how do I find out whether two short sentences mean the same simple thing"  # 16 tokens, special ones included
QUERIES = 400
BULK = 2_048  # texts of one request, the most that the API takes
PAUSE = 0.02  # seconds between queries under load
# Each as long as a text may be: plain words, then what tokenizers may take more than linear time for.
LONG_TEXTS = {
    "words": "a " * (MAX_CHARS // 2),
    "one word": "a" * MAX_CHARS,
    "one word of marks": "a" + "\u0301" * (MAX_CHARS - 1),
    "underscores": "_" * MAX_CHARS,
    "ideographs": "中" * MAX_CHARS,
    "emoji": "😀" * MAX_CHARS,
    "characters that become 18": "\ufdfa" * MAX_CHARS,
    "words of 1,000": ("a" * 999 + " ") * (MAX_CHARS // 1_000),
    "blanks": " " * (MAX_CHARS - 1) + "a",
}
LONG_ROUNDS = 5
MATRIX, PRODUCTS = 2_048, 5  # rows and columns of the product that is the peak; the best of so many, each time

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


class Peak:
    """One large matrix product in bf16 on all threads, as fast as OpenVINO does it; none without bf16."""

    def __init__(self, threads: int) -> None:
        self.best = 0.0
        left = ops.parameter([MATRIX, MATRIX], np.float32)
        right = ops.constant(np.random.default_rng(SEED).normal(size=(MATRIX, MATRIX)).astype(np.float32))
        graph = openvino.Model([ops.matmul(left, right, False, True)], [left], "product")
        options = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
        }
        self._request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()

    def measure(self) -> None:
        """Try again; `best` is in operations a second."""
        numbers = np.random.default_rng(SEED).normal(size=(MATRIX, MATRIX)).astype(np.float32)
        for _ in range(PRODUCTS):
            started = time.perf_counter()
            self._request.infer({0: numbers}, share_inputs=True)
            self.best = max(self.best, 2 * MATRIX**3 / (time.perf_counter() - started))


async def race(sides: dict[str, Side], texts: Sequence[str], peak: Peak | None, operations: float) -> dict[str, Matrix]:
    """Print texts a second of each side, and how many times the last side's that is; returns the vectors.

    `operations` are those of the linear layers for an average text.
    """
    parts = [texts[start : start + PART] for start in range(0, len(texts), PART)]
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    vectors: dict[str, list[Matrix]] = {}
    for embed in sides.values():
        await embed(parts[0])
    for _ in range(ROUNDS):
        vectors = {name: [] for name in sides}
        for part in parts:
            for name, embed in sides.items():
                started, used = time.perf_counter(), time.process_time()
                vectors[name].append(await embed(part))
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
            if peak:
                peak.measure()
    if peak:
        print(f"peak in bf16 {peak.best / 1e9:.0f} GFLOP/s: one product of {MATRIX} x {MATRIX} x {MATRIX}")
    for name in sides:
        print(_line(name, wall, cpu, list(sides)[-1], operations / peak.best if peak else None))
    return {name: np.concatenate(made) for name, made in vectors.items()}


def _line(name: str, wall: dict[str, list[float]], cpu: dict[str, list[float]], base: str, share: float | None) -> str:
    ratio, cpu_ratio = (
        statistics.median(b / a for a, b in zip(times[name], times[base], strict=True)) for times in (wall, cpu)
    )
    rate, cpu_rate = PART / statistics.median(wall[name]), PART / statistics.median(cpu[name])
    of_peak = f"    {share * rate:4.0%} of peak" if share else ""
    return f"{name:22} {rate:6.0f} texts/s  x{ratio:.2f}    cpu {cpu_rate:6.0f} texts/s  x{cpu_ratio:.2f}{of_peak}"


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


async def query_times_under_load(embedder: Embedder, texts: Sequence[str], at_once: int) -> list[float]:
    """Milliseconds of single queries, sorted, while requests of so many texts are embedded one after another."""
    done = False

    async def load() -> None:
        while not done:
            await embedder.embed(1, texts[:at_once], lane="bulk", use_cache=False)

    loading = asyncio.create_task(load())
    await asyncio.sleep(0.5)
    times = []
    for _ in range(QUERIES):
        started = time.perf_counter()
        await embedder.embed(1, [QUERY], role="query", use_cache=False)
        times.append(1_000 * (time.perf_counter() - started))
        await asyncio.sleep(PAUSE)
    done = True
    await loading
    return sorted(times)


def percentiles(times: Sequence[float]) -> str:
    """Of sorted milliseconds."""
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    return f"least {times[0]:.2f}, p50 {p50:.2f}, p99 {p99:.2f} ms"


def agreement(name: str, vectors: Matrix, others: Matrix) -> str:
    """How close two sides' vectors of the same texts are."""
    cosine = np.sum(vectors * others, axis=1)
    least, low, same = cosine.min(), np.quantile(cosine, 0.01), ten_nearest(vectors, others)
    return f"{name:22} cosine to the last: least {least:.6f}, 99 % above {low:.6f}; {same:.3f} of the ten nearest"


def ten_nearest(vectors: Matrix, others: Matrix) -> float:
    """The share of each text's ten nearest by one side's vectors that are so by the other's."""
    nearest = [np.argsort(-(made @ made.T - 2 * np.eye(len(made))), axis=1)[:, :10] for made in (vectors, others)]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)]))


async def queries(embedders: dict[str, Embedder], texts: Sequence[str]) -> None:
    """Print the times of single queries, alone and beside requests of 256 and 2,048 texts."""
    many = (list(texts) * 2)[:BULK]
    for precision, embedder in embedders.items():
        print(f"likewise {precision:13} one query of 16 tokens: {percentiles(await query_times(embedder))}")
        for at_once in (256, BULK):
            times = await query_times_under_load(embedder, many, at_once)
            print(f"likewise {precision:13} beside requests of {at_once:5,} texts: {percentiles(times)}")


async def long_texts(embedder: Embedder) -> None:
    """Print the processor time of the longest texts, in milliseconds, and how many times plain words that is."""
    used: dict[str, list[float]] = {name: [] for name in LONG_TEXTS}
    for _ in range(LONG_ROUNDS):
        for name, text in LONG_TEXTS.items():
            started = time.process_time()
            await embedder.embed(1, [text], use_cache=False)
            used[name].append(1_000 * (time.process_time() - started))
    medians = {name: statistics.median(times) for name, times in used.items()}
    for name, median in medians.items():
        print(f"{MAX_CHARS:,} characters, {name:25} {median:6.0f} ms  x{median / medians['words']:.2f}")


async def main(data: Path) -> None:
    """Run all."""
    threads = os.cpu_count() or 1
    here = able()
    precisions = [one for one, needs in (("bf16", "BF16"), ("int8", "INT8"), ("f32", "FP32")) if needs in here]
    with tempfile.TemporaryDirectory() as folder:
        embedders = {one: Embedder(settings(Path(folder), one, threads)) for one in precisions}
        model = weights.obtain(MODELS[0], settings(Path(folder), "auto", threads))
        sides = {f"likewise {precision}": ours(embedder) for precision, embedder in embedders.items()}
        other = sentence_transformers(model, threads)
        if other:
            sides["sentence-transformers"] = other
        texts = sample(data)
        tokens = (await embedders["f32"].embed(1, texts, lane="bulk", use_cache=False)).tokens
        print(machine())
        print(f"{PASSAGES} passages of {LEAST_WORDS} words or more, {threads} threads; medians of {ROUNDS} rounds")
        operations = 2 * ModelFolder.read(model).shape.linear_weights * float(tokens.mean())
        vectors = await race(sides, texts, Peak(threads) if "BF16" in here else None, operations)
        for name in sides:
            print(agreement(name, vectors[name], vectors[list(sides)[-1]]))
        pairs = lines(data / "sts-benchmark-dev" / "pairs.jsonl.gz")
        for name, embed in sides.items():
            print(f"{name:22} STS-B dev, Spearman {await spearman(embed, pairs):.2f}")
        await queries(embedders, texts)
        await long_texts(embedders["f32"])
        for embedder in embedders.values():
            await embedder.close()


def settings(folder: Path, precision: str, threads: int) -> Settings:
    """Settings for one precision."""
    return load_settings(data_dir=folder, models_dir=MODELS_FOLDER, precision=precision, threads=threads)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA))
