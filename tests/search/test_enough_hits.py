"""As many hits as were asked for, where words alone answer and the first candidates are too few."""

import pytest

from likewise.db import terms
from likewise.db.terms import choose
from likewise.library import Likewise


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collections count as large when a term brings more than twenty contents."""
    monkeypatch.setattr(terms, "MAX_READ", 20)
    monkeypatch.setattr(terms, "MIN_BY_CONJUNCTIONS", 20)


def test_rare_terms_are_taken_alone_and_common_ones_together() -> None:
    # Given a query with rare and common terms, of a hundred thousand contents
    frequencies = {1: 3, 2: 40, 3: 7_000, 4: 20_000, 5: 60_000}
    # Then those of few contents are asked for alone, the others two or three at a time
    chosen = choose(frequencies, 100_000)
    assert chosen.terms == (1, 2)
    assert chosen.conjunctions == ((3, 4),)
    assert not chosen.complete
    # And pairs that would bring too many come as triples
    chosen = choose({3: 15_000, 4: 20_000, 5: 25_000, 6: 90}, 100_000)
    assert chosen.terms == (6,)
    assert chosen.conjunctions == ((3, 4, 5),)


def test_wider_searches_read_more() -> None:
    frequencies = {1: 9_000, 2: 10_000, 3: 300_000}
    read = [sum(frequencies[term] for term in choose(frequencies, 1_000_000, wider).terms) for wider in (1, 4, 16)]
    assert read == sorted(read)
    assert read[0] == 19_000


def test_a_query_of_few_contents_ranks_all_of_them() -> None:
    assert choose({1: 3, 2: 3_400}, 100_000).complete
    assert choose({}, 10).complete


def test_one_common_term_alone_is_asked_for() -> None:
    assert choose({9: 50_000}, 100_000).terms == (9,)


def test_what_conjunctions_bring_is_bounded() -> None:
    frequencies = {term: 10_000 + term for term in range(60)}
    chosen = choose(frequencies, 1_000_000)
    assert len(chosen.conjunctions) <= terms.MAX_CONJUNCTIONS


@pytest.mark.usefixtures("few_candidates")
async def test_a_rare_word_beside_a_common_one_brings_as_many_as_asked_for(lw: Likewise) -> None:
    # Given a common word in many texts, and a rare one in one
    records = [{"id": str(n), "text": f"pump {n}"} for n in range(60)] + [{"id": "rare", "text": "zyzzyva"}]
    await lw.collection("notes").add(records)
    # When both are asked for by their words
    found = await lw.collection("notes").search("zyzzyva pump", mode="lexical", limit=40)
    # Then forty come, the rare one first
    assert len(found.hits) == 40
    assert found.hits[0].id == "rare"


@pytest.mark.usefixtures("few_candidates")
async def test_a_word_that_was_counted_a_minute_ago_and_has_gone_hides_nothing(lw: Likewise) -> None:
    # Given a word that many texts had when it was counted
    notes = lw.collection("notes")
    await notes.add([{"id": str(n), "text": f"pump valve{n}"} for n in range(50)])
    await notes.add([{"id": f"o{n}", "text": f"oil {n}"} for n in range(30)])
    await notes.search("oil pump", mode="lexical")
    # When nearly all of them are gone
    for n in range(28):
        await notes.delete(f"o{n}")
    # Then the others are found
    assert len((await notes.search("oil pump", mode="lexical", limit=20)).hits) == 20


async def test_words_with_a_threshold_look_further_than_their_best_hundred(lw: Likewise) -> None:
    # Given more than a hundred texts that words rank before those that are near in meaning
    repeated = [{"id": f"w{n}", "text": f"pump pump pump pump other{n} more{n} else{n}"} for n in range(150)]
    near = [{"id": f"n{n}", "text": f"pump cold frost winter ice{n}"} for n in range(5)]
    await lw.collection("notes").add(repeated + near)
    # When those near in meaning are asked for by words
    found = await lw.collection("notes").search("pump cold frost winter", mode="lexical", threshold=0.8, limit=5)
    # Then all of them come
    assert {hit.id for hit in found.hits} == {f"n{n}" for n in range(5)}


async def test_words_of_more_than_a_hundred_texts_are_passed_over_for_a_threshold(lw: Likewise) -> None:
    # Given one text near in meaning that a hundred and fifty beat by words
    many = [{"id": f"w{n}", "text": "alpha " * 8 + f"x{n} y{n} z{n}"} for n in range(150)]
    far = {"id": "far", "text": "alpha " + " ".join(f"filler{n}" for n in range(40))}
    await lw.collection("notes").add([*many, far])
    wanted = "alpha " + " ".join(f"filler{n}" for n in range(40))
    # When it is asked for by one word, near to its own vector
    found = await lw.collection("notes").search(wanted, mode="lexical", threshold=0.95)
    assert [hit.id for hit in found.hits] == ["far"]


async def test_a_threshold_passes_over_more_texts_than_the_collection_was_last_known_to_have(
    lw: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given 1,300 texts that words rank before the one that is near in meaning, and a count from before they came
    monkeypatch.setattr(lw.runtime.writer.averages, "count", lambda *counted: None)
    many = [{"id": f"w{n}", "text": "alpha " * 8 + f"x{n} y{n} z{n}"} for n in range(1_300)]
    wanted = "alpha " + " ".join(f"filler{n}" for n in range(40))
    await lw.collection("notes").add([*many, {"id": "far", "text": wanted}])
    # When it is asked for by one word, near to its own vector
    found = await lw.collection("notes").search(wanted, mode="lexical", threshold=0.95, limit=5)
    # Then it comes, and the search ends
    assert [hit.id for hit in found.hits] == ["far"]


async def test_a_query_of_ten_thousand_words_is_bounded(lw: Likewise) -> None:
    await lw.collection("notes").add([{"id": str(n), "text": f"word{n} pump"} for n in range(100)])
    query = " ".join(f"word{n}" for n in range(10_000))
    found = await lw.collection("notes").search(query, mode="lexical", limit=20)
    assert len(found.hits) == 20
