"""Texts that a remote reranker fails on: they are their caller's trouble, and nobody else's."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import likewise
from likewise.embedding.embedder import Embedder
from likewise.errors import Invalid, ModelUnavailable
from likewise.search.reranking import Rerankers
from likewise.settings import Settings, load_settings
from likewise.testing import FakeProvider, ScriptedReply, ThrowawayPostgres, Upstream
from likewise.testing.scripted import ReceivedRequest
from tests.search.rerankers import at, reranking

TENANT, OTHER = 1, 2
QUERY, TEXTS, POISON = "silver engine", ["winter in the garden"], ["poison in the garden"]
BREAKS = ScriptedReply(500, headers={"retry-after-ms": "1"})
WRONG = ScriptedReply.of({"results": []})


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().running() as running:
        yield running


@pytest.fixture
async def made(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Rerankers]:
    """A reranker at an address."""
    settings = load_settings(data_dir=tmp_path / "data", offline=True)
    async with AsyncExitStack() as stack:
        made = reranking(settings, **at(tmp_path, upstream.url))
        stack.push_async_callback(made.close)
        yield made


def failing_on_poison(reply: ScriptedReply) -> object:
    """A server that gives this answer to some texts."""

    def behaviour(asked: ReceivedRequest) -> ScriptedReply | None:
        return reply if any("poison" in text for text in asked.texts) else None

    return behaviour


@pytest.mark.parametrize("reply", [BREAKS, WRONG], ids=["500", "wrong answer"])
async def test_texts_that_it_fails_on_close_it_for_nobody_else(
    made: Rerankers, upstream: Upstream, reply: ScriptedReply
) -> None:
    # Given a server that fails on one tenant's texts
    upstream.always = failing_on_poison(reply)  # type: ignore[assignment]
    for _ in range(8):
        # When that tenant asks, more often than a provider may fail in a row
        with pytest.raises(Invalid) as refused:
            await made.rerank(TENANT, QUERY, POISON)
        # Then it hears that its texts are to blame
        assert refused.value.faults[0].code == "text_failed"
        # And another is answered
        assert len((await made.rerank(OTHER, QUERY, TEXTS)).scores) == 1
    assert made.states()[0].state == "ready"


@pytest.mark.parametrize("reply", [BREAKS, WRONG], ids=["500", "wrong answer"])
async def test_one_that_fails_on_everything_is_left_alone(
    made: Rerankers, upstream: Upstream, reply: ScriptedReply
) -> None:
    # Given a server that does nothing well
    upstream.always = reply
    # When it has failed on plain texts as well, as often as a provider may
    for _ in range(5):
        with pytest.raises(ModelUnavailable):
            await made.rerank(TENANT, QUERY, TEXTS)
    # Then nobody asks it
    before = len(upstream.asked)
    with pytest.raises(ModelUnavailable):
        await made.rerank(TENANT, QUERY, TEXTS)
    assert len(upstream.asked) == before
    assert made.states()[0].state == "failed"


async def test_a_search_whose_texts_it_fails_on_is_told_to_do_without(
    postgres: ThrowawayPostgres, upstream: Upstream, tmp_path: Path
) -> None:
    # Given records of which the reranker cannot score one
    async with postgres.database() as urls:
        settings: Settings = load_settings(
            data_dir=tmp_path / "data",
            database_url=urls.owner,
            database_serving_url=urls.serving,
            **at(tmp_path, upstream.url),
        )
        embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
        async with likewise.open(settings, embedder=embedder) as lw:
            notes = lw.collection("notes")
            await notes.create()
            await notes.add([{"id": "a", "text": TEXTS[0]}, {"id": "b", "text": POISON[0]}], wait=True)
            for reply in (BREAKS, ScriptedReply(413)):
                upstream.always = failing_on_poison(reply)  # type: ignore[assignment]
                # When somebody searches
                with pytest.raises(Invalid, match="search without rerank") as refused:
                    await notes.search("garden", rerank=True)
                # Then the mend is one that who searches has
                assert [(one.pointer, one.code) for one in refused.value.faults] == [("/rerank", "text_failed")]
            assert len((await notes.search("garden")).hits) == 2
