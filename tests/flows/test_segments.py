"""What a program does with document segments, end to end: jobs, points, and the same request again."""

import asyncio
import contextlib
import random
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from likewise.apps.segments import documents, rows
from likewise.apps.segments.documents import NewSegment
from likewise.apps.segments.results import EmbedAnswer
from likewise.apps.segments.service import SegmentQuery
from likewise.db import collections, jobs, waiting
from likewise.errors import Conflict, Invalid, NotFound
from likewise.ingest import claims
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import DatabaseUrls, FakeProvider
from tests.ingest.rows import asked
from tests.jobs import ended as job_ended
from tests.patience import until

pytestmark = pytest.mark.usefixtures("whole")

ASSET, SEGMENT = "manual/7", "page 1"
COLD, WARM = "the pump fails when it is cold", "the valve leaks when it is warm"
COLLECTION = "segments:minilm-l6-v2"


@pytest.fixture(params=[False, True], ids=["no text kept", "text kept"])
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """What follows is so whether texts are kept or not."""
    return settings.model_copy(update={"segments_keep_text": request.param})


@pytest.fixture
async def gate(provider: FakeProvider) -> asyncio.Event:
    """While it is not set the model answers nothing."""
    provider.gate = asyncio.Event()
    return provider.gate


async def embed(lw: Likewise, text: str = COLD, segment: str = SEGMENT, **others: Any) -> EmbedAnswer:
    return await lw.segments.embed(await lw.tenant(), ASSET, segment, text, **others)


async def ended(lw: Likewise, job: UUID) -> Any:
    """The default tenant's job, once it has ended."""
    return await job_ended(lw, await lw.tenant(), job)


async def search(lw: Likewise, query: str, **others: Any) -> Any:
    return await lw.segments.search(await lw.tenant(), SegmentQuery(query, **others))


async def test_what_was_embedded_is_found(lw: Likewise) -> None:
    # When
    accepted = await embed(lw, metadata={"lang": "en", "model": "theirs"})
    job = await ended(lw, accepted.job_id)
    found = await search(lw, COLD)
    # Then the job tells what was read
    assert accepted.status == "PENDING"
    assert job.status == "SUCCEEDED"
    assert job.error is None
    assert {name: job.result[name] for name in ("text_len", "truncated_len", "tokens", "truncated_tokens")} == {
        "text_len": len(COLD),
        "truncated_len": len(COLD),
        "tokens": 9,
        "truncated_tokens": 0,
    }
    assert job.result["point_id"] == accepted.point_id
    # And the segment is found, with all that is known of it but its text
    [hit] = found.results
    assert hit.score == hit.similarity > 0.99
    assert hit.point_id == accepted.point_id
    assert hit.payload == {
        "point_id": accepted.point_id,
        "org_id": "default",
        "asset_id": ASSET,
        "segment_id": SEGMENT,
        "modality": "text",
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "model_ver": "v1",
        "text_len": len(COLD),
        "truncated_len": len(COLD),
        "tokens": 9,
        "job_id": str(accepted.job_id),
        "lang": "en",
        "metadata": {"lang": "en", "model": "theirs"},
    }
    assert (found.query_model, found.query_model_ver, found.total) == (hit.payload["model"], "v1", 1)


async def test_the_same_request_twice_is_one_job(lw: Likewise, gate: asyncio.Event) -> None:
    first, while_it_waits = await embed(lw), await embed(lw)
    gate.set()
    await ended(lw, first.job_id)
    afterwards = await embed(lw)
    assert {one.job_id for one in (first, while_it_waits, afterwards)} == {first.job_id}
    assert [one.status for one in (first, while_it_waits, afterwards)] == ["PENDING", "PENDING", "SUCCEEDED"]


async def test_a_twin_at_the_same_moment_is_the_same_job(lw: Likewise) -> None:
    for text in (COLD, WARM):
        accepted = await asyncio.gather(*(embed(lw, text) for _ in range(8)))
        assert len({one.job_id for one in accepted}) == 1


async def test_another_text_is_another_job_of_the_same_point(lw: Likewise) -> None:
    # When a segment is A, then B, then A
    accepted = []
    for text in (COLD, WARM, COLD):
        accepted.append(await embed(lw, text))
        await ended(lw, accepted[-1].job_id)
    # Then each time it is what was sent last
    assert len({one.job_id for one in accepted}) == 3
    assert len({one.point_id for one in accepted}) == 1
    [hit] = (await search(lw, COLD)).results
    assert hit.score > 0.99
    assert hit.payload["job_id"] == str(accepted[-1].job_id)


async def test_new_metadata_is_stored_at_once_under_the_same_job(lw: Likewise, gate: asyncio.Event) -> None:
    first = await embed(lw, metadata={"lang": "en"})
    second = await embed(lw, metadata={"lang": "de"})
    gate.set()
    await ended(lw, first.job_id)
    [hit] = (await search(lw, COLD)).results
    assert second.job_id == first.job_id
    assert hit.payload["metadata"] == {"lang": "de"}


async def test_a_batch_is_one_job_and_its_repetition_the_same(lw: Likewise) -> None:
    # Given
    tenant = await lw.tenant()
    batch = [NewSegment(str(number), f"{COLD} {number}", {}) for number in range(5)]
    first = await lw.segments.embed_batch(tenant, ASSET, batch)
    job = await ended(lw, first.job_id)
    assert job.result == {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "model_ver": "v1",
        "total": 5,
        "succeeded": 5,
        "failed": [],
    }
    # When it comes again, and with one that is different
    again = await lw.segments.embed_batch(tenant, ASSET, batch)
    mixed = [*batch[:4], NewSegment("4", WARM, {})]
    other = await lw.segments.embed_batch(tenant, ASSET, mixed)
    other_again = await lw.segments.embed_batch(tenant, ASSET, mixed)
    # Then
    assert (again.job_id, again.status) == (first.job_id, "SUCCEEDED")
    assert other.job_id != first.job_id
    assert other_again.job_id == other.job_id
    # And one of it alone is answered by the job that stored it
    assert (await embed(lw, f"{COLD} 3", "3")).job_id == other.job_id


async def test_what_the_model_cannot_embed_fails_by_itself_and_is_tried_again_when_it_is_told_to(
    lw: Likewise, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    tenant = await lw.tenant()
    monkeypatch.setattr(claims, "RETRY_AFTER", timedelta(0))
    monkeypatch.setattr(waiting, "MAX_PAUSE", 0.0)
    provider.poison = lambda text: WARM in text
    # When some of a batch fails, and all of another
    both = await lw.segments.embed_batch(
        tenant, ASSET, [NewSegment("good", COLD, {}), NewSegment("bad", WARM, {}), NewSegment("worse", WARM * 2, {})]
    )
    bad = await embed(lw, f"{WARM}!")
    # Then
    job, failed = await ended(lw, both.job_id), await ended(lw, bad.job_id)
    assert (job.status, job.result["succeeded"], job.result["total"]) == ("SUCCEEDED", 1, 3)
    assert job.result["failed"] == [{"segment_id": name, "code": "text_failed"} for name in ("bad", "worse")]
    assert (failed.status, failed.result, failed.error.code) == ("FAILED", None, "text_failed")
    # When it can be embedded, and the job is tried again
    provider.poison = None
    if not lw.settings.segments_keep_text:
        with pytest.raises(Conflict, match="Send it again"):
            await lw.jobs.retry(tenant, bad.job_id)
        return
    assert (await lw.jobs.retry(tenant, bad.job_id)).status in ("PENDING", "RUNNING")
    # Then
    assert (await ended(lw, bad.job_id)).status == "SUCCEEDED"
    # And the same batch is another job
    assert (await lw.segments.embed_batch(tenant, ASSET, [NewSegment("bad", WARM, {})])).job_id != both.job_id


async def test_segments_that_came_from_two_jobs_are_a_third_that_has_succeeded(lw: Likewise) -> None:
    made = [await embed(lw, text, text) for text in (COLD, WARM)]
    for one in made:
        await ended(lw, one.job_id)
    batch = [NewSegment(text, text, {}) for text in (COLD, WARM)]
    together = await lw.segments.embed_batch(await lw.tenant(), ASSET, batch)
    assert together.status == "SUCCEEDED"
    assert together.job_id not in {one.job_id for one in made}


async def test_a_segment_that_is_deleted_while_the_same_is_stored_is_a_new_job(
    lw: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    first = await embed(lw)
    await ended(lw, first.job_id)
    hold = rows.hold
    looked = 0

    async def deleted_meanwhile(*arguments: Any) -> Any:
        nonlocal looked
        looked += 1
        held = await hold(*arguments)
        if looked == 1:
            await lw.segments.delete_asset(await lw.tenant(), ASSET)
        return held

    # When it is deleted after it was found
    monkeypatch.setattr(rows, "hold", deleted_meanwhile)
    second = await embed(lw)
    # Then it was looked for again
    assert looked == 2
    assert second.job_id != first.job_id
    assert (await ended(lw, second.job_id)).status == "SUCCEEDED"
    assert len((await search(lw, COLD)).results) == 1


async def test_two_tenants_with_the_same_ids_have_points_and_jobs_of_their_own(lw: Likewise) -> None:
    # Given
    alpha, beta = [await collections.tenant_named(lw.runtime.pool, name) for name in ("alpha", "beta")]
    made = {tenant: await lw.segments.embed(tenant, ASSET, SEGMENT, COLD) for tenant in (alpha, beta)}
    # Then neither sees, cancels nor deletes what is the other's
    assert made[alpha].point_id != made[beta].point_id
    with pytest.raises(NotFound):
        await lw.jobs.get(alpha, made[beta].job_id)
    with pytest.raises(NotFound):
        await lw.jobs.cancel(alpha, made[beta].job_id)
    with pytest.raises(NotFound):
        await lw.segments.delete_point(alpha, UUID(made[beta].point_id))
    assert [job.job_id for job in await lw.jobs.list(alpha, 10)] == [made[alpha].job_id]
    await lw.segments.delete_asset(alpha, ASSET)

    async def is_found() -> bool:
        found = await lw.segments.search(beta, SegmentQuery(COLD))
        return [hit.payload["org_id"] for hit in found.results if hit.payload["tokens"]] == ["beta"]

    await until(is_found)
    assert (await lw.segments.search(alpha, SegmentQuery(COLD))).results == []


async def test_another_version_of_the_model_takes_the_place_of_the_first(lw: Likewise) -> None:
    first = await embed(lw)
    await ended(lw, first.job_id)
    second = await embed(lw, model_ver="v2")
    results = (await search(lw, COLD)).results
    assert second.status == "SUCCEEDED"
    assert (second.job_id == first.job_id, second.point_id == first.point_id) == (False, False)
    assert [hit.point_id for hit in results] == [second.point_id]
    assert results[0].payload["model_ver"] == "v2"


async def test_once_a_job_has_left_the_same_text_makes_another_that_has_succeeded(
    lw: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    first = await embed(lw)
    await ended(lw, first.job_id)
    monkeypatch.setattr(jobs, "RETENTION", timedelta(0))
    await jobs.forget_ended(lw.runtime.pool, 10)
    with pytest.raises(NotFound):
        await lw.jobs.get(await lw.tenant(), first.job_id)
    # When
    second = await embed(lw)
    # Then
    assert second.job_id != first.job_id
    assert second.status == "SUCCEEDED"
    assert (await lw.jobs.get(await lw.tenant(), second.job_id)).result["tokens"] == 9


async def test_two_jobs_on_one_text_both_end(lw: Likewise, gate: asyncio.Event) -> None:
    accepted = [await embed(lw, segment=name) for name in ("a", "b")]
    gate.set()
    assert len({one.job_id for one in accepted}) == 2
    assert [(await ended(lw, one.job_id)).status for one in accepted] == ["SUCCEEDED", "SUCCEEDED"]
    assert len((await search(lw, COLD)).results) == 2


async def in_the_model(lw: Likewise, provider: FakeProvider) -> tuple[EmbedAnswer, asyncio.Event]:
    """A job whose text the model holds until an event."""
    # One before it, which has the model tried on its probe: that should not wait for the gate.
    await ended(lw, (await embed(lw, "something else", "another")).job_id)
    provider.gate = asyncio.Event()
    accepted = await embed(lw)
    await until(lambda: COLD in provider.texts)
    return accepted, provider.gate


async def test_a_job_on_a_text_that_is_deleted_meanwhile_is_cancelled(lw: Likewise, provider: FakeProvider) -> None:
    # Given
    accepted, gate = await in_the_model(lw, provider)
    # When
    await lw.segments.delete_point(await lw.tenant(), UUID(accepted.point_id))
    gate.set()
    # Then
    job = await ended(lw, accepted.job_id)
    assert (job.status, job.result, job.error.code) == ("CANCELLED", None, "deleted")
    # And the same text is another job
    assert (await embed(lw)).job_id != accepted.job_id


async def test_a_job_on_a_text_that_is_replaced_meanwhile_is_cancelled(lw: Likewise, provider: FakeProvider) -> None:
    first, gate = await in_the_model(lw, provider)
    second = await embed(lw, WARM)
    gate.set()
    assert (await ended(lw, first.job_id)).error.code == "replaced"
    assert (await ended(lw, second.job_id)).status == "SUCCEEDED"


async def test_a_job_that_is_cancelled_is_not_the_answer_to_the_same_text(lw: Likewise, gate: asyncio.Event) -> None:
    # Given
    tenant = await lw.tenant()
    first = await embed(lw)
    cancelled = await lw.jobs.cancel(tenant, first.job_id)
    assert (cancelled.status, cancelled.error.code) == ("CANCELLED", "cancelled")
    with pytest.raises(Conflict):
        await lw.jobs.cancel(tenant, first.job_id)
    # When
    second = await embed(lw)
    gate.set()
    # Then
    assert second.job_id != first.job_id
    assert (await ended(lw, second.job_id)).status == "SUCCEEDED"


async def test_an_asset_is_deleted_with_all_its_segments(lw: Likewise) -> None:
    # Given
    tenant = await lw.tenant()
    await lw.segments.embed_batch(tenant, ASSET, [NewSegment(name, COLD, {}) for name in "abc"])
    await lw.segments.embed(tenant, "another", SEGMENT, WARM)
    # When
    await lw.segments.delete_asset(tenant, ASSET)
    # Then
    stats = await lw.collections.stats(tenant, COLLECTION)
    assert (stats["records"], stats["contents"]) == (1, 1)
    with pytest.raises(NotFound):
        await lw.segments.delete_asset(tenant, ASSET)


async def test_filters_know_the_metadata_and_the_names_of_the_payload(lw: Likewise) -> None:
    # Given
    for number, lang in enumerate(("en", "de")):
        accepted = await embed(lw, f"{COLD} {number}", lang, metadata={"lang": lang, "model": "theirs", "id": number})
        await ended(lw, accepted.job_id)
    # Then each finds the second
    for wanted in (
        {"lang": "de"},
        {"metadata.lang": "de"},
        {"segment_id": "de"},
        {"point_id": accepted.point_id},
        {"id": accepted.point_id},
        {"job_id": str(accepted.job_id)},
        {"payload.id": 1},
        {"metadata.model": "theirs", "asset_id": ASSET, "$not": {"lang": "en"}},
        {"model": "sentence-transformers/all-MiniLM-L6-v2", "lang": {"$in": ["de", "fr"]}},
    ):
        found = await search(lw, COLD, filters=wanted)
        assert [hit.point_id for hit in found.results] == [accepted.point_id], wanted
    assert (await search(lw, COLD, filters={"lang": "fr"})).results == []
    assert [hit.payload["lang"] for hit in (await search(lw, COLD, segment_id="en")).results] == ["en"]
    assert (await search(lw, COLD, asset_id="another")).results == []
    assert len((await search(lw, COLD, group_by="lang")).results) == 2
    assert len((await search(lw, COLD, group_by="asset_id")).results) == 1


async def test_a_document_is_cut_in_parts_that_are_what_was_embedded(lw: Likewise, provider: FakeProvider) -> None:
    # Given
    tenant = await lw.tenant()
    text = "  " + " ".join(f"Sentence number {number} is about pump {number}." for number in range(200)) + "\n\n"
    # When
    made = await lw.segments.embed_document(tenant, ASSET, text, metadata={"lang": "en"}, overlap=0)
    await ended(lw, made.job_id)
    # Then
    assert [part.segment_id for part in made.segments] == [f"chunk_{number}" for number in range(made.total)]
    assert made.total > 3
    assert {text[part.start : part.end] for part in made.segments} <= set(provider.texts)
    assert "".join(text[part.start : part.end] for part in made.segments).replace(" ", "") == "".join(text.split())
    job = await lw.jobs.get(tenant, made.job_id)
    assert (job.result["succeeded"], job.result["failed"]) == (made.total, [])


async def test_a_part_begins_with_what_the_last_one_ended_with(lw: Likewise) -> None:
    text = " ".join(f"Sentence number {number} is about pump {number}." for number in range(200))
    made = await lw.segments.embed_document(await lw.tenant(), ASSET, text)
    pairs = list(pairwise(made.segments))
    assert all(later.start < earlier.end < later.end for earlier, later in pairs)
    # Whole sentences of it, and an eighth of what the model reads at most.
    assert {text[later.start : later.start + 8] for _, later in pairs} == {"Sentence"}
    assert max(len(text[later.start : earlier.end].split()) for earlier, later in pairs) <= 32


async def test_a_document_of_too_many_parts_is_refused(lw: Likewise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_PARTS", 3)
    with pytest.raises(Invalid, match="more than 3 parts") as refused:
        await lw.segments.embed_document(await lw.tenant(), ASSET, f"{COLD}. " * 200, max_tokens=32)
    assert [(one.pointer, one.code) for one in refused.value.faults] == [("/text", "too_many_segments")]


async def test_parts_that_a_document_does_not_have_any_more_leave_and_no_others(lw: Likewise) -> None:
    # Given
    tenant = await lw.tenant()
    await lw.segments.embed_batch(
        tenant, ASSET, [NewSegment(name, WARM, {}) for name in ("chunk_x", "chunk_12b", "title")]
    )
    await lw.segments.embed(tenant, "another", "chunk_7", WARM)
    long = await lw.segments.embed_document(tenant, ASSET, f"{COLD}. " * 200, max_tokens=32)
    # When
    short = await lw.segments.embed_document(tenant, ASSET, f"{COLD}. " * 10, max_tokens=32)
    await ended(lw, short.job_id)
    # Then
    assert long.total > short.total
    found = [hit.payload["segment_id"] for hit in (await search(lw, COLD, limit=100, asset_id=ASSET)).results]
    assert sorted(found) == sorted(["chunk_x", "chunk_12b", "title", *(part.segment_id for part in short.segments)])
    again = await lw.segments.embed_document(tenant, ASSET, f"{COLD}. " * 10, max_tokens=32)
    assert again == short.__class__(short.job_id, ASSET, short.total, "SUCCEEDED", short.segments)


async def test_many_at_once_leave_no_job_behind_and_no_row_that_is_wrong(
    lw: Likewise, database: DatabaseUrls, chance: random.Random
) -> None:
    # Given
    tenant, service = await lw.tenant(), lw.segments
    await embed(lw, "the first")
    accepted: list[UUID] = []

    async def one_client(chance: random.Random) -> None:
        for _ in range(12):
            await asyncio.sleep(chance.uniform(0, 0.01))
            asset, text = chance.choice("ab"), f"{chance.choice((COLD, WARM))} {chance.randint(0, 3)}"
            what = chance.choice(("one", "one", "batch", "document", "delete", "cancel", "point"))
            with contextlib.suppress(NotFound, Conflict):
                if what == "one":
                    made = await service.embed(tenant, asset, chance.choice("xy"), text)
                    accepted.append(made.job_id)
                elif what == "batch":
                    batch = [NewSegment(one, f"{text} {chance.randint(0, 1)}", {}) for one in chance.sample("xyz", 2)]
                    accepted.append((await service.embed_batch(tenant, asset, batch)).job_id)
                elif what == "document":
                    long = f"{text}. " * chance.randint(1, 12)
                    accepted.append((await service.embed_document(tenant, asset, long, max_tokens=16)).job_id)
                elif what == "delete":
                    await service.delete_asset(tenant, asset)
                elif what == "cancel" and accepted:
                    await lw.jobs.cancel(tenant, chance.choice(accepted))
                elif what == "point":
                    for hit in (await search(lw, text, limit=1)).results:
                        await service.delete_point(tenant, UUID(hit.point_id))

    # When
    await asyncio.gather(*(one_client(random.Random(chance.random())) for _ in range(8)))
    # All may have been deleted in the end; this one is not.
    accepted.append((await service.embed(tenant, "kept", "x", COLD)).job_id)
    # Then every job ends, and as it says
    for job in set(accepted):
        assert (await ended(lw, job)).status in ("SUCCEEDED", "CANCELLED")
    # And each segment that nobody gave up is found, under a job that is known to have stored it
    await lw.wait_until_embedded(COLLECTION)
    found = (await search(lw, COLD, limit=100)).results
    ((kept,),) = await asked(
        database, "SELECT count(*) FROM records r JOIN contents c ON c.pk = r.content WHERE c.state = 'live'"
    )
    assert len(found) == kept
    assert kept > 0
    for hit in found:
        assert hit.payload["tokens"] is not None
        assert (await lw.jobs.get(tenant, UUID(hit.payload["job_id"]))).status in ("SUCCEEDED", "CANCELLED")


async def test_nothing_is_made_by_looking(lw: Likewise) -> None:
    tenant = await lw.tenant()
    found = await search(lw, COLD)
    assert (found.results, found.total) == ([], 0)
    for wrong in ({"model": "nothing"}, {"filters": {"$wrong": 1}}, {"group_by": "$"}, {"mode": "lexical"}):
        with pytest.raises(Invalid):
            await search(lw, COLD, **wrong)
    with pytest.raises(NotFound):
        await lw.segments.delete_asset(tenant, ASSET)
    assert await lw.collections.list(tenant, 10, None) == []


async def test_a_job_that_answers_for_another_request_keeps_its_shape(lw: Likewise) -> None:
    tenant = await lw.tenant()
    single = await embed(lw)
    batch = await lw.segments.embed_batch(tenant, "another", [NewSegment(SEGMENT, WARM, {})])
    again = await lw.segments.embed_batch(tenant, ASSET, [NewSegment(SEGMENT, COLD, {})])
    alone = await lw.segments.embed(tenant, "another", SEGMENT, WARM)
    assert (again.job_id, alone.job_id) == (single.job_id, batch.job_id)
    assert "point_id" in (await ended(lw, again.job_id)).result
    assert "total" in (await ended(lw, alone.job_id)).result
