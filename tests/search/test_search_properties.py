"""Whatever is stored and asked: if k records match, k come back, in the order of a brute-force comparison."""

import contextlib
import itertools
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from likewise.errors import NotFound
from likewise.library import Likewise
from likewise.search.options import Mode
from likewise.testing import FakeProvider

WORDS = ["pump", "valve", "rotor", "cold", "freeze", "leak", "start", "stop", "alarm", "oil"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)


async def stored(lw: Likewise, texts: list[str]) -> list[dict[str, Any]]:
    """A fresh collection of these texts, numbered."""
    records = [{"id": f"r{n:03}", "text": text, "payload": {"n": n}} for n, text in enumerate(texts)]
    notes = lw.collection("notes")
    with contextlib.suppress(NotFound):
        await notes.drop()
    await notes.add(records)
    return records


async def cosines(provider: FakeProvider, query: str, texts: list[str]) -> np.ndarray:
    """The similarities by brute force, over vectors as they are stored: in half precision."""
    asked = (await provider.embed([query], "query")).vectors[0].astype(np.float16).astype(np.float64)
    vectors = (await provider.embed(texts, "document")).vectors.astype(np.float16).astype(np.float64)
    products = vectors @ asked
    return np.asarray(products / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)))


@hypothesis_settings(max_examples=40)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=40),
    query=TEXTS,
    limit=st.integers(1, 50),
    least=st.integers(0, 30),
    mode=st.sampled_from(["hybrid", "dense", "lexical"]),
)
async def test_if_k_records_match_k_come_back(
    lw: Likewise, provider: FakeProvider, texts: list[str], query: str, limit: int, least: int, mode: Mode
) -> None:
    # Given some records
    records = await stored(lw, texts)
    # When they are searched with a filter
    found = await lw.collection("notes").search(query, limit=limit, filters={"n": {"$gte": least}}, mode=mode)
    ids = [hit.id for hit in found.hits]
    # Then each fits it, none comes twice, and as many come as there are
    matching = {str(record["id"]) for record in records if record["payload"]["n"] >= least}
    if mode == "lexical":
        asked = set(query.split())
        matching &= {str(record["id"]) for record in records if asked & set(str(record["text"]).split())}
    assert set(ids) <= matching
    assert len(set(ids)) == len(ids) == min(limit, len(matching))
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)
    # And their similarity is the cosine
    by_text = dict(zip(texts, await cosines(provider, query, texts), strict=True))
    for hit in found.hits:
        if hit.similarity is not None:
            assert hit.similarity == pytest.approx(by_text[hit.record.text or ""], abs=2e-3)
        else:
            assert mode == "lexical"


@hypothesis_settings(max_examples=30)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=40, unique=True),
    query=TEXTS,
    threshold=st.sampled_from([-1.0, -0.1, 0.0, 0.2, 0.5, 0.9, 1.0]),
)
async def test_dense_search_is_in_the_order_of_brute_force_down_to_the_threshold(
    lw: Likewise, provider: FakeProvider, texts: list[str], query: str, threshold: float
) -> None:
    await stored(lw, texts)
    found = await lw.collection("notes").search(query, limit=100, mode="dense", threshold=threshold)
    similarities = await cosines(provider, query, texts)
    expected = [n for n in np.argsort(-similarities, kind="stable") if similarities[n] >= threshold]
    got = [int(hit.id[1:]) for hit in found.hits]
    # Halves are rounded differently by the last digit, here and in the database: near ties may change places
    sure = {n for n in expected if similarities[n] >= threshold + 1e-5}
    assert sure <= set(got)
    assert all(similarities[n] >= threshold - 1e-5 for n in got)
    assert all(similarities[a] >= similarities[b] - 1e-5 for a, b in itertools.pairwise(got))


async def test_the_only_text_with_a_rare_word_is_in_the_first_two_of_hybrid(lw: Likewise) -> None:
    # Given many texts of common words, and each rare word in one
    drawn = random.Random(7)
    texts = [" ".join(drawn.choices(WORDS, k=8)) for _ in range(300)]
    rare = {f"zebra{n}": place for n, place in enumerate(drawn.sample(range(300), 20))}
    for word, place in rare.items():
        texts[place] += f" {word}"
    await stored(lw, texts)
    # When it is asked for
    for word, place in rare.items():
        found = await lw.collection("notes").search(word)
        # Then
        assert f"r{place:03}" in [hit.id for hit in found.hits[:2]]


@pytest.mark.parametrize("query", ['"', "AND NOT", "col:x", "*", "word " * 10_000, "\u0301" * 500, "🙂", "' OR 1=1 --"])
async def test_a_query_of_signs_is_a_query(lw: Likewise, query: str) -> None:
    await stored(lw, ["pump valve", "rotor"])
    for mode in ("hybrid", "dense", "lexical"):
        found = await lw.collection("notes").search(query, mode=mode)  # type: ignore[arg-type]
        assert len(found.hits) <= 2
