"""Filters that let through more than are compared one by one: an index answers, or else all that fit are compared."""

import itertools
from typing import Any

import pytest

from likewise.db import collections, terms
from likewise.db.maintenance import Maintenance
from likewise.db.terms import Matches
from likewise.db.where import exactly
from likewise.filters import parse
from likewise.library import Collection, Likewise
from likewise.search import candidates, ranking
from likewise.search.analyzer import analyze
from tests.patience import until

TOPICS = ("pump oil pressure valve", "letter paper stamp post")
SOME = ("cold", "heat", "noise", "smell", "colour", "weight")


@pytest.fixture
async def texts(lw: Likewise, monkeypatch: pytest.MonkeyPatch) -> Collection:
    """1,200 texts of two topics with their vectors in an index, where fifty already are many."""
    monkeypatch.setattr(candidates, "MAX_IDS", 50)
    monkeypatch.setattr(ranking, "BY_INDEX_US", 0.0)
    monkeypatch.setattr(terms, "MAX_READ", 30)
    collection = lw.collection("texts")
    await collection.create()
    words = itertools.cycle(itertools.permutations(SOME, 3))
    await collection.add(
        [
            {
                "id": f"{n}",
                "text": f"{TOPICS[n % 2]} {' '.join(next(words))} group{n % 30} {n}",
                "payload": {"topic": n % 2, "n": n},
            }
            for n in range(1_200)
        ]
    )
    owner = lw.runtime.database.owner_url
    assert owner is not None

    async def counted_and_indexed() -> bool:
        await Maintenance(owner, max_scanned=0).step()
        async with lw.runtime.pool.tenant(await lw.tenant(), snapshot=True) as tx:
            now = await collections.named(tx, "texts")
        return now.contents_total >= 1_200 and now.active.index_state == "ready"

    await until(counted_and_indexed)
    lw.runtime.recent.forget(await lw.tenant(), "texts")
    return collection


async def test_a_filter_that_goes_against_the_meaning_finds_the_nearest_that_fit(
    texts: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a question about one topic, and a filter for the other
    asked: dict[str, Any] = {"mode": "dense", "limit": 20, "explain": True}
    # When
    found = await texts.search("pump valve smell noise", filters={"topic": 1}, **asked)
    # Then all that fit were compared in the end, which the index does not come to
    monkeypatch.setattr(candidates, "MAX_IDS", 10_000)
    exact = await texts.search("pump valve smell noise", filters={"topic": 1}, **asked)
    assert [hit.score for hit in found.hits] == [pytest.approx(hit.score, abs=1e-3) for hit in exact.hits]
    assert found.explanation["meaning"]["plan"] != "index"


async def test_a_filter_that_has_nothing_to_do_with_the_meaning_is_asked_along_the_index(texts: Collection) -> None:
    # When
    found = await texts.search("pump valve smell noise", filters={"n": {"$lt": 600}}, mode="dense", explain=True)
    # Then
    assert found.explanation["meaning"]["plan"] == "index"
    assert len(found.hits) == 10
    assert all(hit.record.payload["n"] < 600 for hit in found.hits)


async def test_words_under_a_filter_are_looked_for_further_where_few_fit(
    texts: Collection, lw: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given words that forty texts have each, of which a quarter fit
    monkeypatch.setattr(terms, "MIN_BY_CONJUNCTIONS", 0)
    monkeypatch.setattr(terms, "MORE_FOR_A_TERM", 0)
    words = list(analyze(" ".join(f"group{n}" for n in range(30))))

    async def ranked() -> Matches:
        async with lw.runtime.pool.tenant(await lw.tenant(), snapshot=True) as tx:
            now = await collections.named(tx, "texts")
            fitting = exactly(parse({"n": {"$lt": 300}}, {}), now.id)
            counted = await terms.count(tx, now.id, words)
            return await terms.rank(tx, now.id, counted, now.contents_total, 101, among=fitting, share=0.25)

    # When they are ranked, then there are as many as are wanted, of some of the words
    found = await ranked()
    assert len(found.scored) == 101
    assert not found.candidates.complete
    # Where nothing is looked for further all of them have to be read
    monkeypatch.setattr(terms, "MAX_WIDENING", 1.0)
    assert (await ranked()).candidates.complete
