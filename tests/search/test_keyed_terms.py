"""Words without texts: the database alone does not tell which words are kept."""

import psycopg
import pytest
from psycopg.sql import SQL

from likewise.apps.collections.service import KIND
from likewise.db import collections
from likewise.db.collections import CollectionRow
from likewise.db.transaction import table
from likewise.errors import Conflict
from likewise.ingest.writer import Destination
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.search import analyzer
from likewise.search.analyzer import analyze, terms_of
from likewise.search.options import SearchOptions, SearchRequest, TextQuestion
from likewise.testing import DatabaseUrls
from tests.conftest import Opener

TEXTS = {"a": "the pump fails when it is cold", "b": "read_file opens a valve", "c": "今日は天気がいい"}


async def made(lw: Likewise, name: str, policy: Policy) -> CollectionRow:
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        return await collections.make(
            tx,
            name,
            kind="collection",
            analyzer="english-1",
            policy=policy,
            model=lw.settings.model,
            dimension=384,
            text_keys=lw.runtime.text_keys,
        )


async def stored(lw: Likewise, name: str, policy: Policy) -> CollectionRow:
    collection = await made(lw, name, policy)
    batch = [NewRecord(id=one, text=text) for one, text in TEXTS.items()]
    await lw.runtime.writer.write(await lw.tenant(), Destination(name, KIND), batch)
    return collection


async def found(lw: Likewise, name: str, *, query: str) -> list[str]:
    request = SearchRequest(TextQuestion(query), SearchOptions(mode="lexical"))
    result = await lw.runtime.searcher.search(await lw.tenant(), name, request)
    return [hit.record.id for hit in result.records]


async def terms_in(database: DatabaseUrls, collection: CollectionRow) -> set[int]:
    async with await psycopg.AsyncConnection.connect(database.owner, autocommit=True) as connection:
        statement = SQL("SELECT DISTINCT unnest(terms) FROM likewise.{}").format(table("terms", collection.id))
        return {int(row[0]) for row in await (await connection.execute(statement)).fetchall()}


NO_TEXT = Policy(keep_text=False)


async def test_words_are_found_and_no_word_can_be_tried_out(open_likewise: Opener, database: DatabaseUrls) -> None:
    async with open_likewise(worker=False) as lw:
        # Given
        first, second = [await stored(lw, name, NO_TEXT) for name in ("first", "second")]
        plain = await stored(lw, "plain", Policy())
        # When
        in_first, in_second, in_plain = [await terms_in(database, one) for one in (first, second, plain)]
        # Then
        guessed = {term for text in TEXTS.values() for term in terms_of(text)}
        assert in_plain == guessed
        assert in_first.isdisjoint(guessed)
        assert in_first.isdisjoint(in_second)
        assert len(in_first) == len(in_second) == len(guessed)
        for name in ("first", "second", "plain"):
            assert await found(lw, name, query="cold pumps") == ["a"]
            assert await found(lw, name, query="file") == ["b"]
            assert await found(lw, name, query="天気") == ["c"]
        # And the key itself is stored sealed, where there is one
        assert plain.sealed_terms_key is None
        key = first.terms_key(lw.runtime.sealing)
        assert key is not None
        assert len(key) == 32
        assert key not in (first.sealed_terms_key or b"")
        assert key != second.terms_key(lw.runtime.sealing)


async def test_another_process_finds_them_too(open_likewise: Opener) -> None:
    async with open_likewise(worker=False) as lw:
        await stored(lw, "notes", NO_TEXT)
    async with open_likewise(worker=False) as lw:
        assert await found(lw, "notes", query="valve") == ["b"]
        assert (await lw.runtime.recent.get(await lw.tenant(), "notes")).contents_total == 3


async def test_a_policy_without_words_needs_no_key_and_one_with_words_does(lw: Likewise) -> None:
    neither = await made(lw, "neither", Policy(keep_text=False, keep_terms=False))
    assert neither.sealed_terms_key is None
    with pytest.raises(ValueError, match="need a key"):
        async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
            await collections.make(
                tx, "without", kind="collection", analyzer="english-1", policy=NO_TEXT, model=lw.settings.model,
                dimension=384,
            )  # fmt: skip
    await made(lw, "twice", NO_TEXT)
    with pytest.raises(Conflict):
        await made(lw, "twice", NO_TEXT)


def test_a_key_changes_terms_and_nothing_else() -> None:
    text = " ".join(TEXTS.values())
    one, other, plain = (analyze(text, b"1" * 32), analyze(text, b"2" * 32), analyze(text))
    assert sorted(one.values()) == sorted(other.values()) == sorted(plain.values())
    assert not one.keys() & other.keys()
    assert one == analyze(text, b"1" * 32)


def test_words_of_all_keys_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyzer, "MAX_KNOWN", 50)
    monkeypatch.setattr(analyzer, "MAX_KEYS", 5)
    for number in range(200):
        key = number.to_bytes(32)
        text = f"pump {number} valve {number % 7}"
        assert analyze(text, key) == analyze(text, key)
        held = analyzer._known_by_key
        assert len(held) <= 5
        assert sum(map(len, held.values())) <= 60
