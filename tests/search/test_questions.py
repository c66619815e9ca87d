"""Questions of every kind: a text, several, a record, contents or a vector; and hits that are contents."""

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from likewise.db.deletions import DROP_VECTORS
from likewise.db.transaction import table
from likewise.errors import Conflict, Invalid
from likewise.library import Likewise
from likewise.search.hits import ContentHit, SearchOutcome
from likewise.search.options import (
    ContentsQuestion,
    RecordQuestion,
    SearchKeywords,
    SearchOptions,
    SearchQuestion,
    SearchRequest,
    TextQuestion,
    TextsQuestion,
    VectorQuestion,
)
from likewise.testing import FakeProvider
from likewise.vectors.store import TextReading
from tests.conftest import Opener

READ = TextReading(5, 0, 20)
COLD, BLUE, MAIL = "the pump fails when cold", "the pump is blue", "invoices come by mail"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
RECORDS = [
    {"id": "cold 1", "text": COLD, "occurred_at": NOON, "status": "old"},
    {"id": "cold 2", "text": COLD, "occurred_at": NOON.replace(hour=15)},
    {"id": "cold 3", "text": COLD, "occurred_at": NOON.replace(hour=18)},
    {"id": "blue", "text": BLUE, "occurred_at": NOON},
    {"id": "mail", "text": MAIL, "occurred_at": NOON},
]


@pytest.fixture
async def notes(lw: Likewise) -> Likewise:
    """A Likewise with five notes of three texts."""
    await lw.collection("notes").add([{**one, "occurred_at": one["occurred_at"].isoformat()} for one in RECORDS])
    return lw


async def asked(lw: Likewise, question: SearchQuestion, offset: int = 0, unit: Any = "records", **options: Any) -> Any:
    request = SearchRequest(question, SearchOptions(**options), offset, unit=unit)
    return await lw.runtime.searcher.search(await lw.tenant(), "notes", request)


def ids(outcome: SearchOutcome) -> list[str]:
    return [hit.record.id for hit in outcome.records]


async def vector_of(text: str) -> Any:
    return (await FakeProvider().embed([text], "query")).vectors[0]


async def contents_of(lw: Likewise) -> dict[str, int]:
    outcome = await asked(lw, TextQuestion("pump mail"), unit="contents")
    return {hit.content.text: hit.content.content for hit in outcome.hits}


def faults(error: pytest.ExceptionInfo[Invalid]) -> list[tuple[str, str]]:
    return [(fault.pointer, fault.code) for fault in error.value.faults]


def test_programs_can_name_every_option() -> None:
    assert set(SearchKeywords.__annotations__) == {one.name for one in fields(SearchOptions)}


async def test_a_vector_finds_what_is_nearest_by_meaning_alone(notes: Likewise) -> None:
    # When
    outcome = await asked(notes, VectorQuestion(await vector_of(BLUE)), explain=True)
    # Then its scores are cosines, as for the text in mode dense
    by_text = await asked(notes, TextQuestion(BLUE), mode="dense")
    assert ids(outcome) == ids(by_text)
    assert [hit.score for hit in outcome.hits] == [hit.score for hit in by_text.hits]
    assert outcome.hits[0].similarity == pytest.approx(1, abs=1e-3)
    assert outcome.hits[0].found_by == ("dense",)
    assert "words" not in outcome.explanation
    # And filters, pages, groups and thresholds hold for it
    vector = VectorQuestion(await vector_of(BLUE))
    assert ids(await asked(notes, vector, filters={"status": "old"})) == ["cold 1"]
    assert ids(await asked(notes, vector, offset=1, limit=2)) == ids(outcome)[1:3]
    assert ids(await asked(notes, vector, threshold=0.9)) == ["blue"]


async def test_a_vector_that_is_of_no_model_is_refused(notes: Likewise) -> None:
    vector = await vector_of(BLUE)
    for wrong, code in (
        (vector[:7], "wrong_dimension"),
        (np.stack([vector, vector]), "wrong_dimension"),
        (2 * vector, "not_unit_length"),
        (0 * vector, "not_unit_length"),
        (np.full_like(vector, np.nan), "not_unit_length"),
    ):
        with pytest.raises(Invalid) as refused:
            await asked(notes, VectorQuestion(wrong))
        assert faults(refused) == [("/vector", code)]
    # It has no words, and no text for a reranker
    for option, pointer in (({"mode": "lexical"}, "/mode"), ({"rerank": True}, "/rerank")):
        with pytest.raises(Invalid) as refused:
            await asked(notes, VectorQuestion(vector), **option)
        assert faults(refused)[0][0] == pointer


async def test_several_texts_are_asked_for_by_the_mean_of_their_vectors(notes: Likewise) -> None:
    # When what is near to both is asked for
    outcome = await asked(notes, TextsQuestion((COLD, BLUE)), mode="dense")
    # Then the similarity is the cosine with the mean
    mean = await vector_of(COLD) + await vector_of(BLUE)
    mean /= np.linalg.norm(mean)
    expected = {one["id"]: float(await vector_of(one["text"]) @ mean) for one in RECORDS}
    assert {hit.record.id: hit.similarity for hit in outcome.records} == pytest.approx(expected, abs=2e-3)
    assert ids(outcome)[-1] == "mail"
    # And the words of any of them are found
    assert set(ids(await asked(notes, TextsQuestion(("blue", "invoices")), mode="lexical"))) == {"blue", "mail"}


async def test_one_text_of_several_is_that_text(notes: Likewise) -> None:
    alone, several = [await asked(notes, one, limit=3) for one in (TextQuestion(COLD), TextsQuestion((COLD,)))]
    assert [(hit.record.id, hit.score) for hit in several.records] == [
        (hit.record.id, hit.score) for hit in alone.records
    ]


@pytest.mark.parametrize("question", [TextsQuestion(()), ContentsQuestion(()), TextsQuestion(("a",) * 101)])
async def test_a_question_has_parts_but_not_any_number(notes: Likewise, question: SearchQuestion) -> None:
    with pytest.raises(Invalid) as refused:
        await asked(notes, question)
    assert faults(refused) == [("/question", "out_of_range")]


async def test_a_blank_one_of_several_texts_is_named(notes: Likewise) -> None:
    with pytest.raises(Invalid) as refused:
        await asked(notes, TextsQuestion((COLD, " ")))
    assert faults(refused) == [("/texts/1", "blank")]


async def test_contents_are_asked_for_by_the_mean_of_their_vectors_and_are_found_themselves(notes: Likewise) -> None:
    contents = await contents_of(notes)
    # When
    outcome = await asked(notes, ContentsQuestion((contents[COLD], contents[BLUE])))
    # Then
    assert set(ids(outcome)[:4]) == {"cold 1", "cold 2", "cold 3", "blue"}
    by_texts = await asked(notes, TextsQuestion((COLD, BLUE)))
    assert {hit.record.id: hit.similarity for hit in outcome.records} == pytest.approx(
        {hit.record.id: hit.similarity for hit in by_texts.records}, abs=2e-3
    )
    # And words alone do
    assert set(ids(await asked(notes, ContentsQuestion((contents[MAIL],)), mode="lexical"))) == {"mail"}


async def test_contents_without_a_vector_are_waited_for_where_meaning_is_needed(open_likewise: Opener) -> None:
    async with open_likewise(worker=False) as lw:
        records = [{**one, "occurred_at": one["occurred_at"].isoformat()} for one in RECORDS]
        await lw.collection("notes").add(records, wait=False)
        contents = tuple((await contents_of(lw)).values())
        with pytest.raises(Conflict) as refused:
            await asked(lw, ContentsQuestion(contents), mode="dense")
        assert refused.value.code == "waiting"
        # Words do otherwise
        assert len(ids(await asked(lw, ContentsQuestion(contents)))) == len(RECORDS)


async def test_vectors_that_point_in_opposite_directions_have_no_mean(notes: Likewise, lw: Likewise) -> None:
    # Given a content whose vector is another's turned around
    contents, tenant = await contents_of(notes), await lw.tenant()
    active = (await lw.runtime.recent.get(tenant, "notes")).active
    async with lw.runtime.pool.tenant(tenant) as tx:
        known = await lw.runtime.store.fetch(tx, active, [contents[COLD]])
        await tx.execute(DROP_VECTORS.format(vectors=table("vec", active.id)), [[contents[BLUE]]])
        turned = -known[contents[COLD]][None, :]
        await lw.runtime.store.upsert(tx, active, [contents[BLUE]], turned, [READ])
    # Then
    with pytest.raises(Invalid) as refused:
        await asked(notes, ContentsQuestion((contents[COLD], contents[BLUE])))
    assert faults(refused) == [("/question", "no_common_meaning")]


async def test_a_content_comes_once_with_how_often_and_when_it_was_seen(notes: Likewise) -> None:
    # When
    outcome = await asked(notes, TextQuestion("pump cold"), unit="contents")
    # Then
    assert all(isinstance(hit, ContentHit) for hit in outcome.hits)
    seen = {hit.content.text: hit.content for hit in outcome.hits}
    assert list(seen) == [COLD, BLUE, MAIL]
    assert (seen[COLD].records, seen[COLD].first_seen, seen[COLD].last_seen) == (3, NOON, NOON.replace(hour=18))
    assert (seen[BLUE].records, seen[BLUE].first_seen, seen[BLUE].last_seen) == (1, NOON, NOON)
    # And they are scored as their records are
    records = await asked(notes, TextQuestion("pump cold"))
    assert {hit.content.content: hit.score for hit in outcome.hits} == {
        hit.record.content: hit.score for hit in records.records
    }
    assert outcome.hits[0].found_by == ("dense", "lexical")
    assert outcome.hits[0].similarity == records.hits[0].similarity


async def test_contents_come_in_pages_and_their_records_are_counted_under_the_filter(notes: Likewise) -> None:
    question = TextQuestion("pump cold")
    # Given filters and thresholds, then only what fits is counted
    [hit] = (await asked(notes, question, unit="contents", filters={"status": "old"})).hits
    assert (hit.content.records, hit.content.last_seen) == (1, NOON)
    [hit] = (await asked(notes, question, unit="contents", mode="dense", threshold=0.5)).hits
    assert hit.content.text == COLD
    # And pages follow each other
    first = await asked(notes, question, unit="contents", limit=2)
    second = await asked(notes, question, unit="contents", limit=2, offset=2)
    assert ([len(first.hits), first.more], [len(second.hits), second.more]) == ([2, True], [1, False])
    # And the record in question is neither found nor counted
    like = await asked(notes, RecordQuestion("cold 1"), unit="contents")
    assert [hit.content.records for hit in like.hits if hit.content.text == COLD] == [2]
    assert BLUE in {hit.content.text for hit in like.hits}
    # And the fields of records are no groups of contents
    with pytest.raises(Invalid) as refused:
        await asked(notes, question, unit="contents", group_by="status")
    assert faults(refused) == [("/group_by", "invalid_value")]


async def test_a_view_that_is_not_there_is_refused(notes: Likewise) -> None:
    with pytest.raises(Invalid) as refused:
        await asked(notes, TextQuestion("pump"), view="image")
    assert faults(refused) == [("/view", "invalid_value")]
