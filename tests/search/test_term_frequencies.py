"""Counts of terms: remembered for a while, as many as there is room for, whichever collections they are of."""

from collections.abc import Sequence
from typing import Any

import pytest

from likewise.db import terms
from likewise.library import Collection
from likewise.search import ranking
from tests.conftest import Opener

WORDS = [f"word{number}" for number in range(1_200)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many terms each statement counted."""
    sizes: list[int] = []
    count = terms.count

    async def counting(tx: Any, collection: int, wanted: Sequence[int], *, view: int = 0) -> dict[int, int]:
        sizes.append(len(wanted))
        return await count(tx, collection, wanted, view=view)

    monkeypatch.setattr(terms, "count", counting)
    return sizes


async def found(collection: Collection, words: Sequence[str]) -> set[str]:
    return {hit.id for hit in (await collection.search(" ".join(words), mode="lexical", limit=50)).hits}


async def test_a_view_of_many_words_is_counted_once(open_likewise: Opener, counted: list[int]) -> None:
    # Given texts of more words than a few queries have
    async with open_likewise(worker=False) as lw:
        notes = lw.collection("notes")
        groups = [WORDS[at : at + 40] for at in range(0, len(WORDS), 40)]
        await notes.add([{"id": group[0], "text": " ".join(group)} for group in groups], wait=False)
        # When each word is asked for twice
        for group in [*groups, *groups]:
            assert await found(notes, group) == {group[0]}
    # Then each was counted once
    assert sum(counted) == len(WORDS)


async def test_without_room_for_all_what_was_used_longest_ago_is_counted_again(
    open_likewise: Opener, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given room for the words of one collection
    monkeypatch.setattr(ranking, "MAX_REMEMBERED", 30)
    async with open_likewise(worker=False) as lw:
        first, second = lw.collection("first"), lw.collection("second")
        for collection in (first, second):
            await collection.add([{"id": "x", "text": " ".join(WORDS[:50])}], wait=False)
        # When two are asked in turns, and one for more words than there is room for
        for collection in (first, first, second, first):
            assert await found(collection, WORDS[:20]) == {"x"}
        assert counted == [20, 20, 20]
        # Then all is found as before
        assert await found(second, WORDS[:50]) == {"x"}
        assert await found(second, WORDS[:50]) == {"x"}
    assert counted[3:] == [50, 50]
