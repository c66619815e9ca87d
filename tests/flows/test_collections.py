"""What a program does with a collection, end to end."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

import likewise
from likewise.errors import Conflict, Invalid, ModelUnavailable, NotFound
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.settings import Settings

PUMPS = [
    {
        "id": str(n),
        "text": f"pump number {n} fails when it is cold",
        "payload": {"n": n, "tags": ["odd" if n % 2 else "even"]},
    }
    for n in range(50)
]


async def test_what_was_added_is_found_by_words_and_meaning(lw: Likewise) -> None:
    # Given
    notes = lw.collection("notes")
    # When
    result = await notes.add(PUMPS)
    found = await notes.search("pump number 7")
    # Then
    assert (result.created, result.changed, result.unchanged) == (50, 0, 0)
    assert found.hits[0].id == "7"
    assert found.hits[0].found_by == ("dense", "lexical")
    assert found.hits[0].record.vector == "ready"
    assert len(found.hits) == 10


async def test_the_same_again_changes_nothing(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.add(PUMPS)
    result = await notes.add(PUMPS)
    assert (result.created, result.changed, result.unchanged) == (0, 0, 50)


async def test_a_changed_payload_keeps_the_vector(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.add([{"id": "a", "text": "one text"}])
    result = await notes.add([{"id": "a", "text": "one text", "payload": {"x": 1}, "status": "done"}])
    record = await notes.get("a")
    assert result.changed == 1
    assert record.payload == {"x": 1}
    assert record.status == "done"
    assert record.vector == "ready"
    assert (await notes.stats())["contents"] == 1


async def test_equal_texts_are_one_content_and_all_their_records_are_hits(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.add([{"id": str(n), "text": "disk full"} for n in range(7)] + [{"id": "x", "text": "something else"}])
    found = await notes.search("disk full", limit=5)
    stats = await notes.stats()
    assert {hit.record.text for hit in found.hits} == {"disk full"}
    assert len(found.hits) == 5
    assert (stats["records"], stats["contents"], stats["vectors"]) == (8, 2, 2)


async def test_a_deleted_record_is_gone_with_its_content(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.add([{"id": "a", "text": "alpha"}, {"id": "b", "text": "beta"}, {"id": "b2", "text": "beta"}])
    await notes.delete("a")
    await notes.delete("b")
    stats = await notes.stats()
    assert (stats["records"], stats["contents"], stats["vectors"]) == (1, 1, 1)
    assert [hit.id for hit in (await notes.search("alpha beta")).hits] == ["b2"]
    with pytest.raises(NotFound):
        await notes.delete("a")
    with pytest.raises(NotFound):
        await notes.get("a")


async def test_like_finds_others_and_not_itself(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.add(PUMPS)
    for mode in ("hybrid", "dense", "lexical"):
        found = await notes.similar("7", limit=20, mode=mode)
        assert len(found.hits) == 20
        assert "7" not in {hit.id for hit in found.hits}


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
@pytest.mark.parametrize("indexed", [(), ("n", "tags")])
async def test_filters_bring_all_that_match(lw: Likewise, mode: str, indexed: tuple[str, ...]) -> None:
    notes = lw.collection("notes")
    await notes.create(policy=Policy(indexed=indexed))
    await notes.add(PUMPS)
    cases = [
        ({"n": 7}, {"7"}),
        ({"n": {"$gte": 10, "$lt": 13}}, {"10", "11", "12"}),
        ({"n": {"$in": [1, 2, 99]}}, {"1", "2"}),
        ({"tags": {"$contains": "odd"}, "n": {"$lt": 4}}, {"1", "3"}),
        ({"$or": [{"n": 1}, {"id": "5"}]}, {"1", "5"}),
        ({"n": {"$gt": 46}, "$not": {"n": 48}}, {"47", "49"}),
        ({"n": "7"}, set()),
        ({"missing": None, "n": 3}, {"3"}),
        ({"missing": {"$exists": True}}, set()),
        ({"status": {"$ne": "x"}, "n": {"$lte": 1}}, {"0", "1"}),
        ({"created_at": {"$gte": "2020-01-01T00:00:00Z"}, "n": 5}, {"5"}),
    ]
    for filters, expected in cases:
        found = await notes.search("pump", filters=filters, mode=mode)
        assert {hit.id for hit in found.hits} == expected, filters


async def test_a_threshold_of_zero_means_zero(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.add(PUMPS)
    found = await notes.search("pump number 7", threshold=0.0)
    assert len(found.hits) == 10
    assert all(hit.similarity is not None and hit.similarity >= 0.0 for hit in found.hits)
    assert len((await notes.search("pump number 7 fails when it is cold", threshold=0.999)).hits) == 1


async def test_every_part_of_a_record_comes_back(lw: Likewise) -> None:
    notes = lw.collection("notes")
    at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    record = {"id": "a/b é", "text": "text\x00with nul", "payload": {"k": [1, {"x": None}]}, "parent": "p"}
    await notes.add([{**record, "occurred_at": at}])
    stored = await notes.get("a/b é")
    assert stored.text == "text\ufffdwith nul"
    assert stored.payload == {"k": [1, {"x": None}]}
    assert (stored.parent, stored.occurred_at) == ("p", at)


async def test_a_policy_without_terms_finds_by_meaning_only(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.create(policy=Policy(keep_terms=False))
    await notes.add(PUMPS)
    found = await notes.search("pump number 7")
    assert found.hits[0].found_by == ("dense",)
    with pytest.raises(Invalid):
        await notes.search("pump", mode="lexical")


async def test_a_policy_may_refuse_long_texts(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.create(policy=Policy(on_long="refuse"))
    with pytest.raises(Invalid) as refused:
        await notes.add([{"id": "a", "text": "short"}, {"id": "b", "text": "word " * 300}])
    assert [fault.pointer for fault in refused.value.faults] == ["/1/text"]
    assert (await notes.stats())["records"] == 0


async def test_a_text_that_was_cut_says_so(lw: Likewise) -> None:
    await lw.collection("notes").add([{"id": "long", "text": "word " * 300}, {"id": "short", "text": "word"}])
    assert (await lw.collection("notes").get("long")).truncated_tokens == 300 + 2 - 256
    assert (await lw.collection("notes").get("short")).truncated_tokens == 0


async def test_collections_are_made_once_and_dropped_whole(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.create()
    with pytest.raises(Conflict):
        await notes.create()
    await notes.add(PUMPS)
    await notes.drop()
    with pytest.raises(NotFound):
        await notes.search("pump")
    await notes.add(PUMPS[:1])
    assert (await notes.stats())["records"] == 1


async def test_a_default_model_that_is_absent_hinders_no_collection_of_another(
    settings: Settings, tmp_path: Path
) -> None:
    # Given a default model whose folder is yet to come, and a collection of another model
    absent = settings.model_copy(
        update={"model": str(tmp_path / "later"), "models_allowed": ("minilm-l6-v2",), "offline": True}
    )
    async with likewise.open(absent, worker=False) as lw:
        tenant = await lw.tenant()
        await lw.collections.create(tenant, "notes", "minilm-l6-v2")
        # When
        stored = await lw.collections.add(tenant, "notes", [NewRecord("a", "a valve leaks")])
        with pytest.raises(ModelUnavailable) as refused:
            await lw.collections.add(tenant, "others", [NewRecord("a", "a valve leaks")])
    # Then only making one needs the default
    assert stored.created == 1
    assert refused.value.code == "weights_absent"
