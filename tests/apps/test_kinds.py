"""The kind of a collection is looked up by its name, whichever route searches it."""

import httpx2
import pytest

from likewise.apps.collections.schemas import SearchIn
from likewise.ingest.writer import Destination, NewCollection
from likewise.kind import Kind, Kinds, NewRecord, UnknownKind
from likewise.library import Likewise
from likewise.server.app import create_app
from tests.apps.postcards.service import COLLECTION as POSTCARDS_COLLECTION
from tests.apps.test_a_sixth_app import POSTCARDS, calling
from tests.conftest import Opener
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


async def test_a_collection_whose_app_is_not_there_can_be_dropped(open_likewise: Opener) -> None:
    async def dropped(client: httpx2.AsyncClient) -> tuple[int, str]:
        answer = await client.delete(f"/api/v1/collections/{POSTCARDS_COLLECTION}")
        return answer.status_code, answer.json()["code"] if answer.content else ""

    # Given a collection of an app, which alone deletes from it while it is there
    async with open_likewise(apps=[POSTCARDS]) as lw, calling(create_app(lw, lw.settings)) as client:
        await lw.postcards.store(await lw.tenant(), "1", "Greetings from Rome", "Rome")
        assert await dropped(client) == (409, "collection_of_app")
    # When that app is gone
    async with open_likewise() as lw, calling(create_app(lw, lw.settings)) as client:
        # Then nobody writes to it, and it can be dropped with all it holds
        record = f"/api/v1/collections/{POSTCARDS_COLLECTION}/records/1"
        assert (await client.delete(record)).json()["code"] == "collection_of_app"
        assert await dropped(client) == (204, "")
        assert await dropped(client) == (404, "collection_not_found")
        assert (await client.get(record)).status_code == 404
        async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
            assert await tx.row("SELECT count(*) FROM contents") == (0,)


def test_kinds_are_known_by_their_names() -> None:
    with pytest.raises(UnknownKind) as refused:
        Kinds().of("traces")
    assert (refused.value.status, refused.value.code) == (409, "unknown_kind")
