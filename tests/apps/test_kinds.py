"""The kind of a collection is looked up by its name, whichever route searches it."""

import pytest

from likewise.apps.collections.schemas import SearchIn
from likewise.ingest.writer import Destination, NewCollection
from likewise.kind import Kind, Kinds, NewRecord, UnknownKind
from likewise.library import Likewise
from tests.jobs import ended

COLLECTION = "segments:minilm-l6-v2"


async def test_the_general_api_knows_the_names_of_a_segment_s_fields(lw: Likewise) -> None:
    # Given
    tenant = await lw.tenant()
    for asset in ("manual", "leaflet"):
        stored = await lw.segments.embed(tenant, asset, "page 1", f"the pump of the {asset} fails")
        await ended(lw, tenant, stored.job_id)
    # When
    found = await lw.collection(COLLECTION).search("pump", filters={"asset_id": "manual"}, mode="dense")
    grouped = await lw.collection(COLLECTION).search("pump", group_by="asset_id", mode="dense")
    # Then
    assert [hit.record.parent for hit in found.hits] == ["manual"]
    assert sorted(hit.group for hit in grouped.hits) == ["leaflet", "manual"]


async def test_a_collection_whose_app_is_not_there_is_refused_by_the_name_of_its_kind(lw: Likewise) -> None:
    # Given
    tenant = await lw.tenant()
    postcards = Kind(name="postcards")
    into = Destination("old", postcards, NewCollection(lw.embedder.known(), postcards.policy))
    await lw.runtime.writer.write(tenant, into, [NewRecord("1", "the pump fails")])
    # When, then
    with pytest.raises(UnknownKind, match="postcards"):
        await lw.collections.search(tenant, "old", SearchIn(query="pump").to_request())
    # Its row can be read all the same
    assert (await lw.collections.get(tenant, "old")).kind == "postcards"


def test_kinds_are_known_by_their_names() -> None:
    with pytest.raises(UnknownKind) as refused:
        Kinds().of("traces")
    assert (refused.value.status, refused.value.code) == (409, "unknown_kind")
