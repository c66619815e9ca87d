"""Faults of the systems that Likewise replaces, one test each: none of them is here."""

import asyncio
import contextlib
import pickle
import re
import subprocess
import sys
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from psycopg import AsyncConnection

import likewise
from likewise.apps.segments import NewSegment, SegmentQuery
from likewise.backoff import Backoff
from likewise.db.maintenance import Maintenance
from likewise.embedding.cache import cache_key
from likewise.embedding.caches.redis import unpacked
from likewise.embedding.embedder import Embedder
from likewise.embedding.models import Catalogue
from likewise.embedding.providers import openai
from likewise.embedding.remote.limits import RetryPolicy
from likewise.errors import Invalid, ModelUnavailable, NotFound, SettingsError
from likewise.ingest.claims import Claim
from likewise.ingest.worker import Worker
from likewise.library import Likewise
from likewise.settings import Settings, load_settings
from likewise.testing import DatabaseUrls, FakeProvider, ScriptedReply, Upstream
from tests.conftest import Opener
from tests.jobs import ended
from tests.models_file import models_file
from tests.patience import until


async def vector_of(lw: Likewise, record: str, text: str) -> float:
    """The similarity of a record to a text: 1 for its own vector."""
    (hit,) = (await lw.collection("notes").search(text, mode="dense", filters={"id": record})).hits
    assert hit.similarity is not None
    return hit.similarity


async def test_a_text_set_to_a_then_b_then_a_has_the_vector_of_a(lw: Likewise) -> None:
    for text in ("alpha one", "beta two", "alpha one"):
        await lw.collection("notes").add([{"id": "x", "text": text}])
    assert await vector_of(lw, "x", "alpha one") > 0.999


async def test_an_older_text_that_ends_late_overwrites_nothing(lw: Likewise, provider: FakeProvider) -> None:
    # Given a text in the model
    notes = lw.collection("notes")
    # The first record has the model tried on its probe, which should not wait for the gate.
    await notes.add([{"id": "first", "text": "something else"}])
    provider.gate = asyncio.Event()
    await notes.add([{"id": "x", "text": "alpha one"}], wait=False)
    await until(lambda: "alpha one" in provider.texts)
    # When it is replaced before the model answers
    await notes.add([{"id": "x", "text": "beta two"}], wait=False)
    provider.gate.set()
    await lw.wait_until_embedded("notes")
    # Then the record has the newer one's vector
    assert await vector_of(lw, "x", "beta two") > 0.999
    assert (await notes.stats())["vectors"] == 2


async def test_lengths_are_the_tokenizers_and_both_numbers_are_told(lw: Likewise, provider: FakeProvider) -> None:
    # Given a text of many characters and few tokens, and one of many tokens
    long_words, many_words = " ".join(["x" * 50] * 20), " ".join(["x"] * 400)
    embedded = await lw.embed([long_words, many_words])
    assert list(embedded.truncated) == [0, 400 + 2 - provider.max_tokens]
    assert list(embedded.tokens) == [22, provider.max_tokens]
    assert embedded.chars_read[0] == len(long_words)


async def test_no_vector_is_made_up_while_the_model_is_away(
    settings: Settings, open_likewise: Opener, provider: FakeProvider
) -> None:
    # Given a model that is away
    def away(_: object) -> FakeProvider:
        raise ModelUnavailable

    embedder = Embedder(settings, providers={settings.model: away})
    async with open_likewise(embedder=embedder) as lw:
        # When a record is stored
        await lw.collection("notes").add([{"id": "x", "text": "the pump leaks"}], wait=False)
        # Then it waits, has no vector, and is found by its words
        stats = await lw.collection("notes").stats()
        (hit,) = (await lw.collection("notes").search("pump leak")).hits
        assert (stats["vectors"], stats["waiting"], stats["failed"]) == (0, 1, 0)
        assert (hit.found_by, hit.similarity, hit.record.vector) == (("lexical",), None, "waiting")
    async with open_likewise() as lw:
        # And it gets a real one when the model is back
        await lw.wait_until_embedded("notes")
        assert await vector_of(lw, "x", "the pump leaks") > 0.999


def test_keys_of_the_cache_are_the_same_in_every_process() -> None:
    arguments = (1, "space", "numerics", "document", 384, "text \u00e9 \ud800")
    code = f"from likewise.embedding.cache import cache_key; print(cache_key(*{arguments!r}).hex())"
    keys = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert keys == {cache_key(*arguments).hex() + "\n"}  # type: ignore[arg-type]
    assert cache_key(1, "ab", "c", "document", 3, "x") != cache_key(1, "a", "bc", "document", 3, "x")


async def test_the_same_text_is_embedded_once(lw: Likewise, provider: FakeProvider) -> None:
    await lw.embed(["one text"])
    again = await lw.embed(["one text"])
    assert provider.texts.count("one text") == 1
    assert again.cached.all()


async def test_only_what_can_heal_is_asked_again(settings: Settings, tmp_path: Path) -> None:
    # Given a remote model that is told to refuse one text for good, and is away for a moment at another
    async with Upstream(16).running() as upstream:
        chosen = settings.model_copy(update={"model": "ours", "models_file": models_file(tmp_path, upstream.url)})
        spec = Catalogue(chosen).resolve("ours")
        provider = openai.load(spec, RetryPolicy(between=Backoff(0.01, 0.02)))
        embedder = Embedder(chosen, providers={"ours": lambda _: provider})
        await embedder.embed(1, ["plain"])
        upstream.always = lambda asked: ScriptedReply(400) if "bad" in asked.texts else None
        # When each is embedded, and the bad one with others
        upstream.next.append(ScriptedReply(503))
        assert (await embedder.embed(1, ["comes back"])).vectors.shape == (1, 16)
        with pytest.raises(Invalid) as refused:
            await embedder.embed(1, ["fine", "bad", "fine too"])
        await embedder.close()
    # Then what was away was asked again, the bad text alone is named, and no request with it came twice
    assert [fault.pointer for fault in refused.value.faults] == ["/texts/1"]
    asked = [tuple(one.texts) for one in upstream.asked]
    assert asked.count(("comes back",)) == 2
    with_bad = [texts for texts in asked if "bad" in texts and len(texts) > 1]
    assert len(with_bad) == len(set(with_bad))


def test_nothing_that_is_kept_is_a_pickle(tmp_path: Path) -> None:
    # Given a pickle that does something when it is read, where a vector is expected
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    # When it is read as one
    assert unpacked(bytes(32), pickle.dumps(Trap())) is None
    # Then nothing was done, and no code of ours reads or writes any
    assert not (tmp_path / "sprung").exists()
    program = Path(likewise.__file__).parent
    assert not [file for file in program.rglob("*.py") if re.search(r"^\s*(import|from) pickle", file.read_text())]


async def test_a_document_that_begins_with_query_is_not_a_query(lw: Likewise, provider: FakeProvider) -> None:
    tenant = await lw.tenant()
    await lw.embedder.embed(tenant, ["query: pump"], role="document")
    asked = await lw.embedder.embed(tenant, ["query: pump"], role="query")
    assert not asked.cached.any()
    assert not (await lw.embedder.embed(tenant, ["pump"], role="query")).cached.any()


async def test_vectors_of_one_model_are_not_searched_with_another(open_likewise: Opener, settings: Settings) -> None:
    # Given vectors that one model made
    async with open_likewise() as lw:
        await lw.collection("notes").add([{"id": "x", "text": "the pump leaks"}])
    # When another answers to the same name
    other = Embedder(settings, providers={settings.model: lambda spec: FakeProvider(space="another")})
    async with open_likewise(embedder=other) as lw:
        # Then it neither searches nor writes there, and says why; words still find
        with pytest.raises(ModelUnavailable) as refused:
            await lw.collection("notes").search("pump", mode="dense")
        assert refused.value.code == "model_differs"
        await lw.collection("notes").add([{"id": "y", "text": "the valve leaks"}], wait=False)
        found = await lw.collection("notes").search("leaks")
        assert {hit.found_by for hit in found.hits} == {("lexical",)}
        assert found.degraded == ("model",)
        await asyncio.sleep(0.3)
        assert (await lw.collection("notes").stats())["vectors"] == 1


async def test_a_model_that_answers_otherwise_than_before_is_found_out_by_its_probe(
    open_likewise: Opener, settings: Settings
) -> None:
    # Given vectors of a model
    async with open_likewise() as lw:
        await lw.collection("notes").add([{"id": "x", "text": "the pump leaks"}])

    class Turned(FakeProvider):
        """The same space by its name, other vectors."""

        def _vector(self, text: str) -> np.ndarray:
            return -super()._vector(text)

    # When one claims to be the same, and is not
    embedder = Embedder(settings, providers={settings.model: lambda spec: Turned()})
    async with open_likewise(embedder=embedder) as lw:
        with pytest.raises(ModelUnavailable, match="probe"):
            await lw.collection("notes").search("pump", mode="dense")


async def test_a_threshold_of_zero_is_not_the_default(lw: Likewise) -> None:
    await lw.collection("notes").add([{"id": str(n), "text": f"text {n}"} for n in range(5)])
    assert len((await lw.collection("notes").search("text 1", threshold=0.0)).hits) == 5


async def test_the_item_itself_takes_no_place_among_those_like_it(lw: Likewise) -> None:
    await lw.collection("notes").add([{"id": str(n), "text": f"text {n}"} for n in range(6)])
    found = await lw.collection("notes").similar("3", limit=5)
    assert {hit.id for hit in found.hits} == {"0", "1", "2", "4", "5"}


async def test_a_threshold_keeps_the_index_in_use(lw: Likewise, database: DatabaseUrls) -> None:
    # Given a collection with an index
    await lw.collection("notes").add([{"id": str(n), "text": f"pump {n}"} for n in range(300)])
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        await owner.execute("ANALYZE")
    await Maintenance(database.owner, max_scanned=0).step()
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        before = await _index_scans(owner)

        # When it is searched with a threshold, then just what is near enough comes, and the index is used
        async def used() -> bool:
            found = await lw.collection("notes").search("pump 7", mode="dense", threshold=0.9)
            assert [hit.id for hit in found.hits] == ["7"]
            return await _more_scans(owner, before)

        await until(used)


async def _index_scans(owner: AsyncConnection[tuple[object, ...]]) -> int:
    statement = (
        "SELECT coalesce(sum(idx_scan), 0)::int FROM pg_stat_user_indexes WHERE indexrelname ~ '^vec.*embedding$'"
    )
    row = await (await owner.execute(statement)).fetchone()
    return int(str(row[0])) if row else 0


async def _more_scans(owner: AsyncConnection[tuple[object, ...]], before: int) -> bool:
    return await _index_scans(owner) > before


async def test_a_filter_loses_no_rows_to_the_index(lw: Likewise, database: DatabaseUrls) -> None:
    # Given an index, and ten records that fit a filter and are far from the query
    records = [{"id": str(n), "text": f"pump number {n}", "payload": {"rare": n >= 490}} for n in range(490)]
    records += [{"id": str(n), "text": f"invoice {n} of may", "payload": {"rare": True}} for n in range(490, 500)]
    await lw.collection("notes").add(records)
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        await owner.execute("ANALYZE")
    await Maintenance(database.owner, max_scanned=0).step()
    # When they are asked for, then all ten come
    for mode in ("hybrid", "dense"):
        found = await lw.collection("notes").search("pump number 5", filters={"rare": True}, mode=mode)
        assert {hit.id for hit in found.hits} == {str(n) for n in range(490, 500)}


async def test_a_text_deleted_while_in_the_model_does_not_come_back(lw: Likewise, provider: FakeProvider) -> None:
    notes = lw.collection("notes")
    # The first record has the model tried on its probe, which should not wait for the gate.
    await notes.add([{"id": "first", "text": "something else"}])
    provider.gate = asyncio.Event()
    await notes.add([{"id": "x", "text": "alpha one"}], wait=False)
    await until(lambda: "alpha one" in provider.texts)
    await notes.delete("x")
    provider.gate.set()
    await lw.wait_until_embedded("notes")
    assert (await notes.stats())["vectors"] == 1
    assert [hit.id for hit in (await notes.search("alpha one")).hits] == ["first"]


async def test_one_nul_in_one_item_costs_the_batch_nothing(lw: Likewise) -> None:
    result = await lw.collection("notes").add(
        [{"id": "a", "text": "with\x00nul", "payload": {"k\x00": "v\x00"}}, {"id": "b", "text": "without"}]
    )
    assert result.created == 2
    assert (await lw.collection("notes").get("a")).payload == {"k\ufffd": "v\ufffd"}


async def test_one_bad_text_fails_alone(lw: Likewise, provider: FakeProvider) -> None:
    # Given a text that the model cannot embed, among others
    provider.poison = lambda text: "poison" in text
    records = [{"id": str(n), "text": f"text {n}"} for n in range(20)] + [{"id": "bad", "text": "poison"}]
    await lw.collection("notes").add(records, wait=False)
    # Then the others have their vectors
    await until(lambda: _vectors_are(lw, 20))
    assert (await lw.collection("notes").get("bad")).vector in ("waiting", "failed")


async def _vectors_are(lw: Likewise, count: int) -> bool:
    return int((await lw.collection("notes").stats())["vectors"]) == count


async def test_what_was_answered_is_there_after_a_restart(open_likewise: Opener) -> None:
    async with open_likewise() as lw:
        await lw.collection("notes").add([{"id": "x", "text": "the pump leaks", "payload": {"k": 1}}])
    async with open_likewise() as lw:
        assert (await lw.collection("notes").get("x")).payload == {"k": 1}
        assert await vector_of(lw, "x", "the pump leaks") > 0.999


async def test_the_same_item_twice_is_one_and_can_be_deleted(lw: Likewise) -> None:
    notes = lw.collection("notes")
    for _ in range(2):
        await notes.add([{"id": "x", "text": "the pump leaks"}])
    assert (await notes.stats())["records"] == 1
    await notes.delete("x")
    with pytest.raises(NotFound):
        await notes.delete("x")
    assert (await notes.stats())["contents"] == 0


async def test_times_have_their_zone(lw: Likewise) -> None:
    await lw.collection("notes").add([{"id": "x", "text": "a", "occurred_at": "2026-01-31T13:00:00+01:00"}])
    record = await lw.collection("notes").get("x")
    for moment in (record.occurred_at, record.created_at, record.updated_at):
        assert moment is not None
        assert moment.tzinfo is not None
        assert moment.utcoffset() == timedelta()
    assert record.occurred_at is not None
    assert record.occurred_at.astimezone(UTC).hour == 12


async def test_a_worker_that_lost_its_lease_writes_nothing(
    open_likewise: Opener, provider: FakeProvider, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_likewise(worker=False) as lw:
        await lw.collection("notes").add([{"id": "x", "text": "alpha one"}], wait=False)
        parts = lw.runtime
        stale_model, fresh_model = FakeProvider(gate=asyncio.Event()), provider
        workers = []
        for model in (stale_model, fresh_model):
            embedder = Embedder(settings, providers={settings.model: lambda spec, model=model: model})
            others = parts.admission, parts.store, parts.wake_signal, parts.sealing
            workers.append(Worker(parts.pool, embedder, *others, lease=timedelta(seconds=1)))
        stale, fresh = workers
        # Given a worker that holds a text in its model and cannot renew its lease
        monkeypatch.setattr(Claim, "renewed", _not_renewed)
        late = asyncio.create_task(stale.step())
        await until(lambda: "alpha one" in stale_model.texts)
        # When its lease is over and another worker has done the work
        running = asyncio.create_task(fresh.run())
        await until(lambda: _vectors_are(lw, 1))
        running.cancel()
        # Then what the first one brings is not written, and the queue is whole
        assert stale_model.gate is not None
        stale_model.gate.set()
        await late
        stats = await lw.collection("notes").stats()
        assert (stats["vectors"], stats["waiting"], stats["failed"]) == (1, 0, 0)


def _not_renewed(*_: object) -> object:
    return contextlib.nullcontext()


async def test_a_job_on_a_text_that_another_job_waits_for_ends_with_it(lw: Likewise, provider: FakeProvider) -> None:
    # Given a text in the model, for a first job
    first, gate = await _in_the_model(lw, provider, "alpha one")
    # When a second one is about the same text
    second = (await lw.segments.embed(await lw.tenant(), "b", "s", "alpha one")).job_id
    gate.set()
    # Then both end
    assert [await _ended(lw, job) for job in (first, second)] == ["SUCCEEDED", "SUCCEEDED"]
    assert provider.texts.count("alpha one") == 1


async def test_a_segment_set_to_a_then_b_then_a_is_found_as_a(lw: Likewise) -> None:
    tenant = await lw.tenant()
    points = set()
    for text in ("alpha one", "beta two", "alpha one"):
        stored = await lw.segments.embed(tenant, "a", "s", text)
        points.add(stored.point_id)
        await _ended(lw, stored.job_id)
    found = await lw.segments.search(tenant, SegmentQuery("alpha one"))
    assert [hit.point_id for hit in found.results] == list(points)
    assert found.results[0].score > 0.999


async def test_a_segment_deleted_while_in_the_model_ends_its_job_and_does_not_come_back(
    lw: Likewise, provider: FakeProvider
) -> None:
    # Given
    tenant = await lw.tenant()
    job, gate = await _in_the_model(lw, provider, "alpha one")
    # When
    await lw.segments.delete_asset(tenant, "a")
    gate.set()
    # Then
    assert await _ended(lw, job) == "CANCELLED"
    found = await lw.segments.search(tenant, SegmentQuery("alpha one"))
    assert [hit.payload["asset_id"] for hit in found.results] == ["warm"]
    assert (await lw.collections.stats(tenant, "segments:minilm-l6-v2"))["vectors"] == 1


async def test_an_older_job_that_ends_late_overwrites_nothing(lw: Likewise, provider: FakeProvider) -> None:
    # Given a text in the model, for a first job
    tenant = await lw.tenant()
    older, gate = await _in_the_model(lw, provider, "alpha one")
    # When a second one replaces it before the model answers
    newer = (await lw.segments.embed(tenant, "a", "s", "beta two")).job_id
    gate.set()
    # Then the segment has the newer one's vector, and is the newer one's
    assert [await _ended(lw, job) for job in (older, newer)] == ["CANCELLED", "SUCCEEDED"]
    (hit,) = (await lw.segments.search(tenant, SegmentQuery("beta two", asset_id="a"))).results
    assert hit.score > 0.999
    assert hit.payload["job_id"] == str(newer)
    assert (await lw.collections.stats(tenant, "segments:minilm-l6-v2"))["vectors"] == 2


async def _in_the_model(lw: Likewise, provider: FakeProvider, text: str) -> tuple[UUID, asyncio.Event]:
    """The job on a text that the model holds until an event."""
    tenant = await lw.tenant()
    # The first one has the model tried on its probe, which should not wait for the gate.
    await _ended(lw, (await lw.segments.embed(tenant, "warm", "s", "something else")).job_id)
    provider.gate = asyncio.Event()
    job = (await lw.segments.embed(tenant, "a", "s", text)).job_id
    await until(lambda: text in provider.texts)
    return job, provider.gate


async def test_one_nul_in_one_segment_costs_its_batch_nothing(lw: Likewise) -> None:
    tenant = await lw.tenant()
    batch = [NewSegment("good", "alpha one", {}), NewSegment("odd", "beta\0two \ud800", {"note": "nul \0"})]
    assert await _ended(lw, (await lw.segments.embed_batch(tenant, "a", batch)).job_id) == "SUCCEEDED"
    found = await lw.segments.search(tenant, SegmentQuery("beta two", segment_id="odd"))
    assert found.results[0].payload["note"] == "nul \ufffd"


async def test_there_is_no_default_secret_for_tokens(settings: Settings) -> None:
    assert settings.dev_jwt_secret is None
    with pytest.raises(SettingsError, match="LIKEWISE_DEV_JWT_SECRET"):
        load_settings(data_dir=settings.data_dir, auth="dev")


async def _ended(lw: Likewise, job: UUID) -> str:
    return str((await ended(lw, await lw.tenant(), job)).status)
