"""Searches whose first hits a reranker puts in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import likewise
from likewise.embedding.embedder import Embedder
from likewise.errors import Invalid, ModelUnavailable, NotFound
from likewise.kind import Policy
from likewise.library import Likewise
from likewise.search.options import MIN_RERANKED, SearchOptions, SearchRequest, TextQuestion
from likewise.settings import Settings
from likewise.testing import FakeProvider, ScriptedReply, Upstream
from likewise.testing.scripted import ReceivedRequest
from tests.patience import PATIENCE
from tests.search.rerankers import at

NOTES = [
    {"id": "a", "text": "the pump fails when it is cold", "payload": {"site": "north"}},
    {"id": "b", "text": "a pump that fails is replaced", "payload": {"site": "north"}},
    {"id": "c", "text": "invoices are sent monthly", "payload": {"site": "south"}},
    {"id": "d", "text": "the pump fails when it is cold", "payload": {"site": "south"}},
    {"id": "e", "text": "the pump is blue", "payload": {}},
]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().running() as running:
        yield running


@pytest.fixture
async def lw(settings: Settings, upstream: Upstream, tmp_path: Path) -> AsyncIterator[Likewise]:
    """A Likewise with some notes, and a reranker at an address."""
    chosen = settings.model_copy(update=at(tmp_path, upstream.url))
    embedder = Embedder(chosen, providers={chosen.model: lambda spec: FakeProvider()})
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(likewise.open(chosen, embedder=embedder))
        await opened.collection("notes").add(NOTES)
        yield opened


def scoring(**scores: float) -> Any:
    """A reranker that knows texts by a word of theirs, and scores the others 0."""

    def reply(asked: ReceivedRequest) -> ScriptedReply:
        found = [next((score for word, score in scores.items() if word in text), 0.0) for text in asked.texts]
        return ScriptedReply.of({"results": [{"index": n, "relevance_score": score} for n, score in enumerate(found)]})

    return reply


def ids(found: Any) -> list[str]:
    return [hit.id for hit in found.hits]


async def test_hits_come_in_the_order_of_the_reranker(lw: Likewise, upstream: Upstream) -> None:
    # Given a reranker of another mind than the rankings
    upstream.always = scoring(blue=0.9, invoices=0.5, cold=0.25, replaced=0.125)
    notes = lw.collection("notes")
    plain = await notes.search("the pump fails when it is cold")
    # When it is asked for
    found = await notes.search("the pump fails when it is cold", rerank=True)
    # Then the order and the scores are its own, of those who share a text as they were, and the rest is as it was
    shared = [one for one in ids(plain) if one in ("a", "d")]
    assert ids(found) == ["e", "c", *shared, "b"]
    assert [hit.score for hit in found.hits] == [pytest.approx(one, abs=1e-6) for one in (0.9, 0.5, 0.25, 0.25, 0.125)]
    before = {hit.id: (hit.similarity, hit.lexical_score, hit.found_by) for hit in plain.hits}
    assert {hit.id: (hit.similarity, hit.lexical_score, hit.found_by) for hit in found.hits} == before
    # And a text that two records have was read once
    assert len(upstream.asked[-1].texts) == 4
    assert upstream.asked[-1].body["query"] == "the pump fails when it is cold"


async def test_it_reads_more_hits_than_are_answered(lw: Likewise, upstream: Upstream) -> None:
    # Given more records than it reads, of which it likes one that the rankings put in their middle
    notes = lw.collection("many")
    await notes.add([{"id": str(n), "text": f"pump {'pump ' * (n % 7)}number {n}"} for n in range(MIN_RERANKED + 20)])
    order = ids(await notes.search("pump", limit=MIN_RERANKED + 20))
    upstream.always = scoring(**{f"number {order[MIN_RERANKED - 1]}": 1.0})
    # When two hits are wanted, then the fifty first were read, and it comes first
    found = await notes.search("pump", limit=2, rerank=True)
    assert sum(len(asked.texts) for asked in upstream.asked) == MIN_RERANKED
    assert ids(found) == [order[MIN_RERANKED - 1], order[0]]
    # And as many as are asked for come, each read
    upstream.asked.clear()
    assert len((await notes.search("pump", limit=60, rerank=True)).hits) == 60
    assert sum(len(asked.texts) for asked in upstream.asked) == 60


async def test_equal_scores_leave_the_order_as_it_was(lw: Likewise, upstream: Upstream) -> None:
    upstream.always = scoring()
    notes = lw.collection("notes")
    plain = ids(await notes.search("the pump fails"))
    for _ in range(3):
        assert ids(await notes.search("the pump fails", rerank=True)) == plain


async def test_the_text_of_a_record_is_the_query_of_its_neighbours(lw: Likewise, upstream: Upstream) -> None:
    found = await lw.collection("notes").similar("b", rerank=True)
    assert "b" not in ids(found)
    assert upstream.asked[-1].body["query"] == "a pump that fails is replaced"
    assert "a pump that fails is replaced" not in upstream.asked[-1].texts
    with pytest.raises(NotFound):
        await lw.collection("notes").similar("nobody", rerank=True)


async def test_a_threshold_stays_a_cosine(lw: Likewise, upstream: Upstream) -> None:
    upstream.always = scoring(cold=0.01)
    found = await lw.collection("notes").search("the pump fails when it is cold", threshold=0.9, rerank=True)
    assert sorted(ids(found)) == ["a", "d"]
    assert [hit.score for hit in found.hits] == [pytest.approx(0.01), pytest.approx(0.01)]


async def test_groups_keep_the_hit_that_the_rankings_chose(lw: Likewise, upstream: Upstream) -> None:
    upstream.always = scoring(blue=0.9, cold=0.5)
    found = await lw.collection("notes").search("the pump fails when it is cold", group_by="site", rerank=True)
    assert found.hits[0].group is None
    assert sorted(ids(found)) == ["a", "d", "e"]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
async def test_in_every_mode(lw: Likewise, mode: Any) -> None:
    found = await lw.collection("notes").search("cold pump", mode=mode, rerank=True)
    assert ids(found)[0] in ("a", "d")
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)


async def test_filters_and_explanation(lw: Likewise, upstream: Upstream) -> None:
    found = await lw.collection("notes").search("pump", filters={"site": "south"}, rerank=True, explain=True)
    assert sorted(ids(found)) == ["c", "d"]
    assert found.explanation is not None
    assert found.explanation["rerank"]["texts"] == len(found.hits)
    assert found.explanation["rerank"]["ms"] > 0
    assert "pump" not in str(found.explanation)


async def test_nothing_found_asks_nobody(lw: Likewise, upstream: Upstream) -> None:
    assert ids(await lw.collection("notes").search("pump", filters={"site": "nowhere"}, rerank=True)) == []
    assert upstream.asked == []


async def test_there_is_one_page(lw: Likewise) -> None:
    request = SearchRequest(TextQuestion("pump"), SearchOptions(limit=2, rerank=True))
    found = await lw.collections.search(await lw.tenant(), "notes", request)
    assert (len(found.hits), found.more) == (2, False)
    deeper, tenant = replace(request, offset=2), await lw.tenant()
    with pytest.raises(Invalid) as refused:
        await lw.collections.search(tenant, "notes", deeper)
    assert [(one.pointer, one.code) for one in refused.value.faults] == [("/cursor", "rerank_one_page")]


async def test_a_collection_that_keeps_no_texts_is_refused(lw: Likewise, upstream: Upstream) -> None:
    await lw.collections.create(await lw.tenant(), "bare", policy=Policy(keep_text=False))
    with pytest.raises(Invalid, match="keep_text") as refused:
        await lw.collection("bare").search("pump", rerank=True)
    assert [(one.pointer, one.code) for one in refused.value.faults] == [("/rerank", "rerank_needs_text")]
    assert upstream.asked == []


async def test_while_the_reranker_is_away_the_search_is_refused(lw: Likewise, upstream: Upstream) -> None:
    notes = lw.collection("notes")
    upstream.always = ScriptedReply(401)
    with pytest.raises(ModelUnavailable) as away:
        await notes.search("pump", rerank=True)
    # A key that is refused is no fault of the search, which may succeed once it is another.
    assert (away.value.code, away.value.retryable) == ("provider_unauthorized", True)
    assert (await notes.search("pump")).hits


async def test_no_connection_is_held_meanwhile(lw: Likewise, upstream: Upstream) -> None:
    # Given more searches than there are connections, all of which wait for the reranker
    upstream.gate = asyncio.Event()
    notes = lw.collection("notes")
    most = lw.settings.database_connections + 5
    searching = [asyncio.create_task(notes.search("pump", rerank=True)) for _ in range(most)]
    async with asyncio.timeout(PATIENCE):
        while upstream.under_way < 8:
            await asyncio.sleep(0.01)
    # When another asks for nothing of that, then it is answered
    async with asyncio.timeout(PATIENCE):
        assert (await notes.search("pump")).hits
    upstream.gate.set()
    assert all(found.hits for found in await asyncio.gather(*searching))
