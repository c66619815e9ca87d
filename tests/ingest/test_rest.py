"""What fails is left alone for a while, and who waits hears of it."""

import asyncio

import pytest

from likewise.embedding.embedder import Embedder
from likewise.errors import ModelUnavailable
from likewise.ingest import worker
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import FakeProvider
from tests.conftest import Opener
from tests.patience import PATIENCE, until


async def test_a_model_that_fails_is_not_asked_again_and_again(lw: Likewise, provider: FakeProvider) -> None:
    # Given a collection whose model has begun to fail, and thousands of texts that wait
    notes = lw.collection("notes")
    await notes.add([{"id": "first", "text": "first"}])
    provider.fail = ModelUnavailable("away")
    await notes.add([{"id": str(n), "text": f"text {n}"} for n in range(2_000)], wait=False)
    # When some time goes by
    await asyncio.sleep(1.5)
    # Then it was asked a few times, and nothing is failed for it
    assert len(provider.calls) < 60
    assert (await notes.stats())["failed"] == 0
    # And when it is back all get their vectors
    provider.fail = None
    await lw.wait_until_embedded("notes")
    assert (await notes.stats())["vectors"] == 2_001


async def test_a_refused_generation_is_probed_once_in_a_while(
    open_likewise: Opener, settings: Settings, provider: FakeProvider
) -> None:
    # Given a collection that another model made
    async with open_likewise() as lw:
        await lw.collection("notes").add([{"id": "x", "text": "the pump leaks"}])
    other = FakeProvider(space="another")
    embedder = Embedder(settings, providers={settings.model: lambda spec: other})
    async with open_likewise(embedder=embedder) as lw:
        # When it is searched again and again
        for _ in range(20):
            assert (await lw.collection("notes").search("pump")).degraded == ("model",)
        # Then the model was not asked each time
        assert len(other.calls) < 5
        # And health names the reason
        assert "not those" in str((await lw.health()).model)


@pytest.mark.usefixtures("soon")
async def test_who_waits_for_vectors_hears_which_texts_can_have_none(lw: Likewise, provider: FakeProvider) -> None:
    # Given a text that the model cannot embed
    provider.poison = lambda text: "poison" in text
    records = [{"id": "a", "text": "good"}, {"id": "bad", "text": "poison"}, {"id": "c", "text": "fine"}]
    # When it is added with others, waiting for the vectors
    result = await lw.collection("notes").add(records)
    # Then it is named, and the others have theirs
    assert (result.created, [fault.pointer for fault in result.failed]) == (3, ["/1/text"])
    assert (await lw.collection("notes").get("bad")).vector == "failed"
    assert (await lw.collection("notes").get("a")).vector == "ready"
    # And the same again says the same
    again = await lw.collection("notes").add(records)
    assert (again.unchanged, [fault.pointer for fault in again.failed]) == (3, ["/1/text"])


async def test_unchanged_records_that_wait_are_waited_for(lw: Likewise, provider: FakeProvider) -> None:
    # Given records whose vectors are on their way
    await lw.collection("notes").add([{"id": "first", "text": "first"}])
    provider.gate = asyncio.Event()
    await lw.collection("notes").add([{"id": "x", "text": "slow"}], wait=False)
    # When the same are added again, waiting for the vectors
    waiting = asyncio.create_task(lw.collection("notes").add([{"id": "x", "text": "slow"}]))
    await until(lambda: "slow" in provider.texts)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    provider.gate.set()
    # Then they are there when it returns
    assert (await waiting).unchanged == 1
    assert (await lw.collection("notes").get("x")).vector == "ready"


async def test_who_waits_for_a_model_that_is_away_hears_it_at_once(
    lw: Likewise, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a model that went away, and callers that wait for vectors for longer than this test does
    monkeypatch.setattr(worker, "WAIT_SECONDS", 10 * PATIENCE)
    await lw.collection("notes").add([{"id": "first", "text": "first"}])
    provider.fail = ModelUnavailable("away")
    # When one writes, then it hears so
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ModelUnavailable, match="are stored and wait"):
            await lw.collection("notes").add([{"id": "x", "text": "text"}])
    assert (await lw.collection("notes").get("x")).vector == "waiting"
