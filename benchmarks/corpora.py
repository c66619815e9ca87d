"""Real texts to search, each once: passages, titles and docstrings, and their sentences; with vectors and queries.

Which texts come into a corpus is decided by their digests, so a package more or less in this environment changes a few
of them and not all. Vectors are made by Likewise's own embedder and kept in a folder, by text.
"""

import ast
import hashlib
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.surroundings import MODELS_FOLDER, lines
from likewise.embedding.embedder import Embedder
from likewise.search.analyzer import STOP_WORDS
from likewise.settings import load_settings

Halves = NDArray[np.float16]
Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

SEED = 11
# Longer texts are cut off by the model anyway.
MOST_CHARS = 4_000
LEAST_WORDS = 3
QUERIES = 3_000
QUERY_WORDS = (4, 30)
COMMON_WORDS, COMMON_QUERIES = 150, 100
COMMON = [
    "how to use the same value in all of these",
    "what is returned when the type of an object is not the default",
    "set the name of the file to use",
    "all the values that are the same as the first one",
    "the number of times this function may be called",
    "return a new list of all the names",
]
CLUSTERS, CLUSTER_SAMPLE, CLUSTER_ROUNDS = 12, 20_000, 12
# The cosine of a made vector to the real one that it comes from, about.
PERTURBED_COSINE = 0.9
EMBED_AT_ONCE, SAVE_EVERY = 1_000, 20_000

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9`\"'(])|\n\s*\n|\n\s*[-*] ")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Corpus:
    """Texts with their vectors, queries that are none of them, and queries of words that very many texts have.

    `vectors` float16 (n, d) as they are stored; `query_vectors` float32 (q, d); `share` 0..99 at random; `cluster` the
    number of the nearest of CLUSTERS means, `query_cluster` the queries' own. `sources` counts the real texts by where
    they come from; those after the first `real` are made. `spare` are real texts that are left over.
    """

    texts: list[str]
    vectors: Halves
    queries: list[str]
    query_vectors: Floats
    common: list[str]
    common_vectors: Floats
    share: Numbers
    cluster: Numbers
    query_cluster: Numbers
    sources: dict[str, int]
    real: int
    spare: list[str]
    spare_vectors: Halves

    def __len__(self) -> int:
        return len(self.texts)


async def corpus(size: int, data: Path, cache: Path, spare: int = 0) -> Corpus:
    """A corpus of so many texts, or as many as there are and made ones beyond; `spare` texts are embedded as well."""
    texts, sources, queries = _divided(real_texts(data), data)
    real, left = texts[:size], texts[size : size + spare]
    embedder = Embedder(load_settings(data_dir=cache, models_dir=MODELS_FOLDER))
    try:
        vectors = await _embedded(embedder, [*real, *left], cache)
        common = common_queries(real)
        query_vectors, common_vectors = await _asked(embedder, queries), await _asked(embedder, common)
    finally:
        await embedder.close()
    stored, spare_vectors = vectors[: len(real)], vectors[len(real) :]
    whole, stored = _with_made(real, stored, size)
    means = _means(stored)
    return Corpus(
        texts=whole,
        vectors=stored,
        queries=queries,
        query_vectors=query_vectors,
        common=common,
        common_vectors=common_vectors,
        share=np.random.default_rng(SEED).integers(0, 100, size),
        cluster=_nearest_mean(stored, means),
        query_cluster=_nearest_mean(query_vectors, means),
        sources=_counted(sources[: len(real)]),
        real=len(real),
        spare=left,
        spare_vectors=spare_vectors,
    )


def save(folder: Path, corpus: Corpus) -> None:
    """Keep a corpus in a folder."""
    names = ("texts", "queries", "common", "sources", "real", "spare")
    (folder / "corpus.json").write_bytes(orjson.dumps({name: getattr(corpus, name) for name in names}))
    arrays = ("vectors", "query_vectors", "common_vectors", "share", "cluster", "query_cluster", "spare_vectors")
    with (folder / "corpus.npz").open("wb") as opened:
        np.savez(opened, **{name: getattr(corpus, name) for name in arrays})


def load(folder: Path) -> Corpus:
    """A corpus that was kept."""
    with np.load(folder / "corpus.npz") as arrays:
        return Corpus(**orjson.loads((folder / "corpus.json").read_bytes()), **arrays)


def real_texts(data: Path) -> dict[str, str]:
    """Every distinct text, with where it comes from; two that differ in case and space only are one."""
    found: dict[str, tuple[str, str]] = {}
    wholes: list[tuple[str, str]] = [
        *((row["text"], "passages") for row in lines(data / "throughput-passages" / "passages.jsonl.gz")),
        *((row["title"], "titles of SciFact") for row in lines(data / "scifact" / "corpus.jsonl.gz")),
        *((text, "docstrings of the standard library") for text in docstrings(Path(sysconfig.get_path("stdlib")))),
        *((text, "docstrings of installed packages") for text in docstrings(Path(sysconfig.get_path("purelib")))),
    ]
    abstracts = [(row["text"], "titles of SciFact") for row in lines(data / "scifact" / "corpus.jsonl.gz")]
    parts = [
        (sentence, "sentences of " + source.removeprefix("titles of "))
        for text, source in [*wholes, *abstracts]
        for sentence in sentences(text)
    ]
    for text, source in [*wholes, *parts]:
        cleaned = text.replace("\0", " ").strip()[:MOST_CHARS]
        if len(cleaned.split()) >= LEAST_WORDS:
            found.setdefault(_SPACES.sub(" ", cleaned).casefold(), (cleaned, source))
    return dict(found.values())


def docstrings(folder: Path) -> Iterator[str]:
    """What the Python files under a folder say of their modules, classes and functions; tests are left out."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if {"test", "tests"}.intersection(parts) or (folder.name != "site-packages" and "site-packages" in parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text.encode("utf-8", "replace").decode()


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, split simply; nothing for a text of one."""
    parts = [_SPACES.sub(" ", part).strip() for part in _SENTENCE_END.split(text)]
    if len(parts) > 1:
        yield from parts


def _divided(found: dict[str, str], data: Path) -> tuple[list[str], list[str], list[str]]:
    """The texts in the order of their digests, their sources, and the queries: claims, and texts held back."""
    ordered = sorted(found, key=_digest)
    claims = [row["text"] for row in lines(data / "scifact" / "queries.jsonl.gz")]
    fitting = [text for text in ordered if QUERY_WORDS[0] <= len(text.split()) <= QUERY_WORDS[1] and "\n" not in text]
    held_back = fitting[-(QUERIES - len(claims)) :]
    queries = sorted(dict.fromkeys([*claims, *held_back]), key=_digest)
    kept = [text for text in ordered if text not in set(queries)]
    return kept, [found[text] for text in kept], queries


def common_queries(texts: Sequence[str]) -> list[str]:
    """Queries of words that very many texts have: some as people ask, most drawn."""
    counted = Counter(word for text in texts for word in {*text.casefold().split()} if word.isalpha())
    words = [word for word, _ in counted.most_common(COMMON_WORDS + len(STOP_WORDS)) if word not in STOP_WORDS]
    chance = random.Random(SEED)
    drawn = [" ".join(chance.sample(words, chance.randint(3, 8))) for _ in range(COMMON_QUERIES - len(COMMON))]
    return [*COMMON, *drawn]


async def _asked(embedder: Embedder, queries: Sequence[str]) -> Floats:
    """The vectors of queries, embedded one by one as the server does."""
    made = [await embedder.embed(1, [query], role="query", use_cache=False) for query in queries]
    return np.concatenate([one.vectors for one in made])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _counted(sources: Sequence[str]) -> dict[str, int]:
    return {source: sources.count(source) for source in sorted(set(sources), key=sources.index)}


async def _embedded(embedder: Embedder, texts: Sequence[str], cache: Path) -> Halves:
    """The texts' vectors, those made before from the cache folder."""
    model = await embedder.opened()
    folder = cache / f"{model.space[:16]}-{_digest(model.numerics).hex()[:8]}"
    known = _read(folder)
    missing = [text for text in texts if _digest(text) not in known]
    # Neighbours of similar length fill batches best.
    missing.sort(key=len)
    for start in range(0, len(missing), SAVE_EVERY):
        part = missing[start : start + SAVE_EVERY]
        made = []
        for at in range(0, len(part), EMBED_AT_ONCE):
            done = await embedder.embed(1, part[at : at + EMBED_AT_ONCE], lane="bulk", use_cache=False)
            made.append(done.vectors.astype(np.float16))
        _write(folder, part, np.concatenate(made))
        print(f"embedded {min(start + SAVE_EVERY, len(missing))} of {len(missing)} texts not seen before", flush=True)
    known = _read(folder) if missing else known
    return np.stack([known[_digest(text)] for text in texts])


def _read(folder: Path) -> dict[bytes, Halves]:
    found: dict[bytes, Halves] = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as stored:
            keys, vectors = stored["keys"], stored["vectors"]
        found.update(zip((key.tobytes() for key in keys), vectors, strict=True))
    return found


def _write(folder: Path, texts: Sequence[str], vectors: Halves) -> None:
    keys = np.frombuffer(b"".join(map(_digest, texts)), np.uint8).reshape(-1, 16)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_digest(keys.tobytes().hex()).hex()}.npz"
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as opened:
        np.savez(opened, keys=keys, vectors=vectors)
    unfinished.rename(file)


def _with_made(texts: list[str], vectors: Halves, size: int) -> tuple[list[str], Halves]:
    """Made contents beyond the real ones: a real vector moved a little, a real text's words shuffled with others'."""
    wanted = size - len(texts)
    if wanted <= 0:
        return texts, vectors
    chance, numbers = random.Random(SEED), np.random.default_rng(SEED)
    whole, seen = list(texts), set(texts)
    bases = numbers.integers(0, len(texts), wanted)
    for base in bases:
        words = texts[base].split() + chance.choices(texts[chance.randrange(len(texts))].split(), k=3)
        while True:
            chance.shuffle(words)
            made = " ".join(words)[:MOST_CHARS]
            if made not in seen:
                break
            words += chance.choices(texts[chance.randrange(len(texts))].split(), k=1)
        seen.add(made)
        whole.append(made)
    moved = np.empty((wanted, vectors.shape[1]), np.float16)
    spread = np.sqrt(1 / PERTURBED_COSINE**2 - 1)
    for start in range(0, wanted, SAVE_EVERY):
        part = vectors[bases[start : start + SAVE_EVERY]].astype(np.float32)
        moved[start : start + SAVE_EVERY] = _unit(part + spread * _unit(numbers.standard_normal(part.shape)))
    return whole, np.concatenate([vectors, moved])


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _means(vectors: Halves) -> Floats:
    """CLUSTERS means by k-means with cosines, from a sample."""
    numbers = np.random.default_rng(SEED)
    sample = vectors[numbers.permutation(len(vectors))[:CLUSTER_SAMPLE]].astype(np.float32)
    means = sample[:CLUSTERS]
    for _ in range(CLUSTER_ROUNDS):
        nearest = np.argmax(sample @ means.T, axis=1)
        means = _unit(np.stack([sample[nearest == one].sum(axis=0) + 1e-9 for one in range(CLUSTERS)]))
    return means


def _nearest_mean(vectors: Halves | Floats, means: Floats) -> Numbers:
    parts = range(0, len(vectors), SAVE_EVERY)
    return np.concatenate(
        [np.argmax(vectors[at : at + SAVE_EVERY].astype(np.float32) @ means.T, axis=1) for at in parts]
    )
