"""How much of the ten nearest is still found with vectors in fewer bytes.

    python -m benchmarks.formats [folder of data] [--size 100000]

Each query is a float vector, compared with documents as `/embed/batch` gives them: numbers of a byte times their
scale, and signs times theirs. `again` takes the first so many by the small form and orders them by the float vectors,
as those do who keep these elsewhere.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import corpora
from benchmarks.surroundings import DATA, machine
from likewise.embedding import formats

CACHE = Path.home() / ".cache" / "likewise-benchmarks"
NEAREST, AGAIN = 10, (20, 40, 100)
QUERIES, AT_A_TIME = 1_000, 100

Floats = NDArray[np.float32]


def as_int8(vectors: Floats) -> Floats:
    """What one who has the bytes and scales takes the vectors for."""
    numbers, scales = formats.int8(vectors)
    return numbers.astype(np.float32) * scales[:, None]


def as_signs(vectors: Floats) -> Floats:
    """The same of the signs and scales."""
    bits, scales = formats.binary(vectors)
    signs = np.unpackbits(bits, axis=1, count=vectors.shape[1]).astype(np.float32) * 2 - 1
    return signs * scales[:, None]


def nearest(vectors: Floats, queries: Floats, count: int) -> NDArray[np.int64]:
    """The places of the nearest vectors of each query, nearest first."""
    found = []
    for start in range(0, len(queries), AT_A_TIME):
        scores = queries[start : start + AT_A_TIME] @ vectors.T
        part = np.argpartition(-scores, count, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1)
        found.append(np.take_along_axis(part, order, axis=1))
    return np.concatenate(found)


def recall(found: Sequence[NDArray[np.int64]], truth: Sequence[NDArray[np.int64]]) -> float:
    """The share of the truth that was found."""
    return float(np.mean([len(np.intersect1d(one, true)) / len(true) for one, true in zip(found, truth, strict=True)]))


def report(name: str, small: Floats, vectors: Floats, queries: Floats, truth: NDArray[np.int64]) -> None:
    """Print what one form keeps."""
    ranked = nearest(small, queries, max(AGAIN))
    again = []
    for count in AGAIN:
        ordered = [
            places[np.argsort(-(vectors[places] @ query))][:NEAREST]
            for places, query in zip(ranked[:, :count], queries, strict=True)
        ]
        again.append(f"first {count} again {recall(ordered, list(truth)):.3f}")
    print(f"{name:8} recall@10 {recall(list(ranked[:, :NEAREST]), list(truth)):.3f}; {', '.join(again)}")


async def main(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    corpus = await corpora.corpus(arguments.size, arguments.data, CACHE)
    vectors = corpus.vectors.astype(np.float32)
    queries = corpus.query_vectors[:QUERIES]
    truth = nearest(vectors, queries, NEAREST)
    print(f"{machine()}\n{len(vectors)} vectors of {vectors.shape[1]} numbers, {len(queries)} queries")
    forms: dict[str, Callable[[Floats], Floats]] = {"int8": as_int8, "binary": as_signs}
    for name, form in forms.items():
        report(name, form(vectors), vectors, queries, truth)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="?", default=DATA)
    parser.add_argument("--size", type=int, default=100_000)
    asyncio.run(main(parser.parse_args()))
