"""Views: a letter is compared by its text, its subject, its words and its stamp, each with contents of its own."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import numpy as np
import pytest
from psycopg.sql import SQL

from likewise.db import collections, waiting
from likewise.db.maintenance import Maintenance
from likewise.errors import Conflict, Invalid, NotFound
from likewise.ingest.writer import Destination
from likewise.kind import Kind, Policy, View
from likewise.library import Likewise
from likewise.search import candidates, views
from likewise.search.options import SearchOptions, SearchRequest, VectorQuestion
from likewise.testing import DatabaseUrls, FakeProvider
from tests.conftest import Opener
from tests.flows.invariants import broken, deadlocks
from tests.flows.letters import APP, DIMENSION, LETTERS, all_embedded, found, letter, like, search, send, stamp

ROWS = "SELECT (SELECT count(*) FROM contents), (SELECT count(*) FROM record_contents)"


@pytest.fixture
async def lw(open_likewise: Opener) -> AsyncIterator[Likewise]:
    async with open_likewise(apps=[APP]) as opened:
        yield opened


@pytest.fixture
async def tenant(lw: Likewise) -> int:
    """A tenant with three letters: two of one subject, two of one stamp, one without either."""
    tenant = await lw.tenant()
    await send(
        lw,
        tenant,
        letter("a", "the pump leaks", subject="pumps", marks=["blue", "round"], sender="ann"),
        letter("b", "a valve is stuck", subject="pumps", marks=["blue", "round"], sender="bob"),
        letter("c", "greetings from the coast", marks=["red"], sender="ann"),
        letter("d", "an invoice for oil", sender="dan"),
    )
    await all_embedded(lw)
    return tenant


async def rows(lw: Likewise, tenant: int, statement: str) -> list[tuple[object, ...]]:
    async with lw.runtime.pool.tenant(tenant) as tx:
        return await tx.rows(SQL(statement))  # type: ignore[arg-type]


async def test_each_view_has_its_contents_and_only_texts_wait(
    lw: Likewise, tenant: int, database: DatabaseUrls, provider: FakeProvider
) -> None:
    by_view = "SELECT view, count(*), count(text) FROM contents GROUP BY view ORDER BY view"
    assert await rows(lw, tenant, by_view) == [(0, 4, 4), (1, 1, 1), (2, 4, 4), (3, 2, 0)]
    assert (await rows(lw, tenant, ROWS)) == [(11, 2 + 4 + 3)]
    async with lw.runtime.pool.tenant(tenant) as tx:
        collection = await collections.named(tx, "letters")
    assert [view.name for view in collection.views] == ["text", "subject", "words", "stamp"]
    assert [view.terms for view in collection.views] == [True, False, True, False]
    sizes = [view.generation and view.generation.dimension for view in collection.views]
    assert sizes == [provider.dimension, provider.dimension, None, DIMENSION]
    assert await broken(database.owner, provider) == {}


async def test_a_search_names_its_view(lw: Likewise, tenant: int) -> None:
    assert (await found(lw, tenant, "the pump leaks"))[0] == "a"
    assert await found(lw, tenant, "pumps", view="subject", mode="dense") == ["a", "b"]
    assert await found(lw, tenant, "pumps", view="words") == ["a", "b"]
    assert await found(lw, tenant, like("a"), view="stamp") == ["b", "c"]
    near = await search(lw, tenant, VectorQuestion(stamp(letter("?", "", marks=["red"]))), view="stamp")
    assert (near[0].record.id, round(near[0].similarity or 0, 3)) == ("c", 1.0)
    assert near[0].record.text == "greetings from the coast"


async def test_a_program_names_views_through_the_library(lw: Likewise, tenant: int) -> None:
    letters = lw.collection("letters")
    assert [hit.record.id for hit in (await letters.search("pumps", view="words")).hits] == ["a", "b"]
    alike = await letters.similar("a", view="stamp", fused_with=("subject",), mode="dense", limit=1)
    assert alike.hits[0].record.id == "b"
    assert (await letters.stats())["contents"] == 4


async def test_rankings_of_several_views_are_fused_by_record(lw: Likewise, tenant: int) -> None:
    # b has the stamp of a, c has a word of it, and only b shares its subject.
    ids = await found(lw, tenant, like("a"), fused_with=("stamp", "subject"), mode="dense")
    assert ids[0] == "b"
    assert set(ids) == {"b", "c", "d"}
    hits = await search(lw, tenant, "pumps", fused_with=("words",))
    assert {hit.record.id for hit in hits[:2]} == {"a", "b"}
    assert all(hit.similarity is not None for hit in hits)
    # A view in which the record has nothing is left out of the fusion.
    assert set(await found(lw, tenant, like("d"), fused_with=("stamp",), mode="dense")) == {"a", "b", "c"}
    # Pages follow each other.
    pages = [
        (await lw.runtime.searcher.search(tenant, "letters", SearchRequest(
            like("a"), SearchOptions(mode="dense", limit=1, fused_with=("stamp",)), offset=at))).records[0].record.id
        for at in range(3)
    ]  # fmt: skip
    assert pages == await found(lw, tenant, like("a"), fused_with=("stamp",), mode="dense")


async def test_a_threshold_is_of_the_view_that_is_named(lw: Likewise, tenant: int) -> None:
    ids = await found(lw, tenant, like("a"), view="stamp", fused_with=("text",), mode="dense", threshold=0.99)
    assert ids == ["b"]


async def test_a_content_expands_to_its_newest_records_and_says_so(
    lw: Likewise, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MAX_RECORDS", 2)
    await send(lw, tenant, *(letter(f"e{n}", "the same to all", marks=["red"]) for n in range(5)))
    await all_embedded(lw)
    request = SearchRequest(like("c"), SearchOptions(mode="dense", view="stamp", fused_with=("text",)))
    outcome = await lw.runtime.searcher.search(tenant, "letters", request)
    assert "records" in outcome.degraded
    assert {"e3", "e4"} < {hit.record.id for hit in outcome.records}


@pytest.mark.parametrize("view", ["text", "subject", "words", "stamp"])
async def test_filters_hold_in_every_view(lw: Likewise, tenant: int, view: str) -> None:
    question = like("b") if view == "stamp" else "pumps the leaks valve"
    for filters in ({"sender": "ann"}, {"subject": "pumps", "sender": "ann"}):
        ids = await found(lw, tenant, question, view=view, filters=filters)
        assert "a" in ids
        assert set(ids) <= {"a", "c"}
    both = await found(
        lw, tenant, like("b"), view="stamp", fused_with=("text",), mode="dense", filters={"sender": "ann"}
    )
    assert set(both) == {"a", "c"}


async def test_an_index_of_a_view_answers_under_filters(
    lw: Likewise, tenant: int, database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    await Maintenance(database.owner, max_scanned=0).step()
    monkeypatch.setattr(candidates, "MAX_IDS", 0)
    lw.runtime.recent.forget(tenant, "letters")
    # Then
    states = [view.generation.index_state for view in (await lw.runtime.recent.get(tenant, "letters")).views
              if view.generation is not None]  # fmt: skip
    assert states == ["ready"] * 3
    assert await found(lw, tenant, like("b"), view="stamp") == ["a", "c"]
    assert set(await found(lw, tenant, like("b"), view="stamp", filters={"sender": "ann"})) == {"a", "c"}
    assert await found(lw, tenant, "pumps", view="subject", filters={"sender": "bob"}, mode="dense") == ["b"]
    assert await found(lw, tenant, "pumps", view="words", filters={"sender": "bob"}) == ["b"]


async def test_what_a_view_cannot_do_is_refused(lw: Likewise, tenant: int) -> None:
    for options, question in (
        ({"view": "smell"}, "x"),
        ({"view": "stamp"}, "a text for a made vector"),
        ({"view": "words", "mode": "dense"}, "x"),
        ({"view": "words", "threshold": 0.5}, "x"),
        ({"view": "subject", "mode": "lexical"}, "x"),
        ({"fused_with": ("text",)}, "x"),
        ({"fused_with": ("words",), "group_by": "sender"}, "x"),
    ):
        with pytest.raises(Invalid):
            await found(lw, tenant, question, **options)
    with pytest.raises(NotFound) as missing:
        await found(lw, tenant, like("d"), view="stamp")
    assert missing.value.code == "record_not_in_view"


async def test_a_record_that_is_the_same_in_every_view_is_unchanged(
    lw: Likewise, tenant: int, database: DatabaseUrls, provider: FakeProvider
) -> None:
    same = letter("a", "the pump leaks", subject="pumps", marks=["blue", "round"], sender="ann")
    before = await rows(lw, tenant, "SELECT pk FROM contents ORDER BY pk")
    assert await send(lw, tenant, same) == {"a": "unchanged"}
    assert await rows(lw, tenant, "SELECT pk FROM contents ORDER BY pk") == before
    # Only its stamp is another: the vector of the old stamp stays, since b has it too.
    changed = letter("a", "the pump leaks", subject="pumps", marks=["red"], sender="ann")
    assert await send(lw, tenant, changed) == {"a": "changed"}
    assert (await found(lw, tenant, like("a"), view="stamp"))[0] == "c"
    # Without marks it has no stamp; and the subject that nobody else has goes.
    assert await send(lw, tenant, letter("a", "the pump leaks", subject="leaks")) == {"a": "changed"}
    await all_embedded(lw)
    with pytest.raises(NotFound):
        await found(lw, tenant, like("a"), view="stamp")
    assert (await found(lw, tenant, "leaks", view="subject", mode="dense"))[0] == "a"
    assert await broken(database.owner, provider) == {}


async def test_contents_go_with_their_last_record_in_every_view(
    lw: Likewise, tenant: int, database: DatabaseUrls, provider: FakeProvider
) -> None:
    collection = await lw.runtime.recent.get(tenant, "letters")
    assert await lw.runtime.writer.delete(tenant, collection, "a")
    assert await rows(lw, tenant, ROWS) == [(11 - 2, 9 - 3)]
    assert await found(lw, tenant, like("b"), view="stamp") == ["c"]
    assert await lw.runtime.writer.delete_with(tenant, collection, "sender", "bob") == 1
    assert await found(lw, tenant, "pumps", view="words") == []
    assert await broken(database.owner, provider) == {}
    assert await lw.runtime.writer.drop(tenant, collection)
    assert await rows(lw, tenant, ROWS) == [(0, 0)]
    assert await broken(database.owner, provider) == {}


async def test_two_tenants_see_their_own_views_alone(lw: Likewise, tenant: int, database: DatabaseUrls) -> None:
    other = await collections.tenant_named(lw.runtime.pool, "other")
    await send(lw, other, letter("a", "something else", subject="secret", marks=["blue", "round"]))
    await all_embedded(lw)
    assert await found(lw, other, like("a"), view="stamp") == []
    assert set(await found(lw, tenant, "secret", view="subject", mode="dense")) == {"a", "b"}
    assert await found(lw, tenant, "secret", view="words") == []
    assert await rows(lw, other, ROWS) == [(4, 3)]
    assert await broken(database.owner) == {}


@pytest.mark.parametrize("policy", [Policy(keep_text=False), Policy(keep_text=False, keep_terms=False)])
async def test_texts_that_are_not_kept_leave_every_view_with_their_vectors(
    open_likewise: Opener, database: DatabaseUrls, policy: Policy
) -> None:
    # Given
    batch = [letter("a", "alpha", subject="one", marks=["red"]), letter("b", "beta", subject="two", marks=["red"])]
    async with open_likewise(worker=False, apps=[APP]) as idle:
        tenant = await idle.tenant()
        await send(idle, tenant, *batch, policy=policy)
        sealed = "SELECT view, count(sealed), count(text) FROM contents GROUP BY view ORDER BY view"
        assert await rows(idle, tenant, sealed) == [(0, 2, 0), (1, 2, 0), (2, 0, 0), (3, 0, 0)]
    # When
    async with open_likewise(apps=[APP]) as lw:
        await all_embedded(lw)
        # Then
        assert await rows(lw, tenant, "SELECT count(sealed) + count(text) FROM contents") == [(0,)]
        assert await found(lw, tenant, like("a"), view="stamp") == ["b"]
        assert (await found(lw, tenant, "two", view="subject", mode="dense"))[0] == "b"
        if policy.keep_terms:
            assert await found(lw, tenant, "beta", view="words") == ["b"]
    assert await broken(database.owner) == {}


async def test_what_a_killed_worker_held_is_embedded_in_each_view(
    open_likewise: Opener, database: DatabaseUrls, provider: FakeProvider
) -> None:
    # Given: a claim on all that waits, of a worker that is heard of no more.
    async with open_likewise(worker=False, apps=[APP]) as idle:
        tenant = await idle.tenant()
        await send(idle, tenant, letter("a", "alpha", subject="one"), letter("b", "beta", subject="two"))
        claimed = await waiting.claim(
            idle.runtime.pool, [idle.embedder.known().name], uuid4(), lease=timedelta(seconds=0.01), max_entries=100,
            after_tenant=0, alone=False,
        )  # fmt: skip
        assert len({entry.generation for entry in claimed}) == 2
    # When
    async with open_likewise(apps=[APP]) as lw:
        await all_embedded(lw)
        # Then
        assert (await found(lw, tenant, "two", view="subject", mode="dense"))[0] == "b"
    assert await broken(database.owner, provider) == {}


async def test_a_kind_that_makes_other_vectors_writes_no_more(lw: Likewise, tenant: int) -> None:
    other = Kind(
        "letters",
        views=(*LETTERS.views[:3], View("stamp", vector=stamp, made_from=lambda _: b"", space="stamps-2", dimension=8)),
    )
    with pytest.raises(Conflict) as refused:
        await lw.runtime.writer.write(tenant, Destination("letters", other), [letter("x", "x", marks=["red"])])
    assert refused.value.code == "model_differs"


async def test_a_made_vector_is_made_once_for_what_it_is_made_from(
    lw: Likewise, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = (await lw.runtime.recent.get(tenant, "letters")).view("stamp").generation
    assert generation is not None
    stamps = f"SELECT content, embedding::text FROM vec_{generation.id} ORDER BY content"
    before = await rows(lw, tenant, stamps)
    await send(lw, tenant, letter("z", "with a stamp that is known", marks=["red"]))
    assert await rows(lw, tenant, stamps) == before
    assert np.isclose(np.linalg.norm(stamp(letter("z", "", marks=["red"]))), 1)


async def test_writers_of_the_same_letters_leave_no_content_behind(
    lw: Likewise, tenant: int, database: DatabaseUrls, provider: FakeProvider, chance: random.Random
) -> None:
    # Given
    collection = await lw.runtime.recent.get(tenant, "letters")

    async def churn() -> None:
        for _ in range(12):
            ids = sorted(chance.sample("abcdef", 3))
            if chance.random() < 0.25:
                await lw.runtime.writer.delete_many(tenant, collection, ids)
                continue
            batch = []
            for one in ids:
                subject, marks = chance.choice([None, "pumps", "oil"]), chance.choice([None, ["red"], ["blue"]])
                batch.append(letter(one, chance.choice(["x", "y"]), subject=subject, marks=marks))
            await send(lw, tenant, *batch)

    # When
    await asyncio.gather(*(churn() for _ in range(5)))
    await all_embedded(lw)
    # Then
    assert await broken(database.owner, provider) == {}
    assert await deadlocks(database.owner) == 0


def test_a_view_that_nothing_could_be_compared_by_is_refused() -> None:
    for wrong in ({}, {"text": lambda _: "", "embedded": False, "terms": False}, {"vector": stamp}):
        with pytest.raises(ValueError, match="view"):
            View("wrong", **wrong)
    with pytest.raises(ValueError, match="first view"):
        Kind("wrong", views=(View("stamp", vector=stamp, made_from=lambda _: b"", space="s", dimension=8),))
    with pytest.raises(ValueError, match="one name"):
        Kind("wrong", views=(*LETTERS.views, LETTERS.views[1]))
