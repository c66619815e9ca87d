"""What is wrong with a search of segments is said of the request that its caller sent."""

from typing import Any

import httpx2
import orjson
import pytest

from likewise.apps.segments import SegmentQuery
from likewise.errors import Invalid, ModelNotAllowed, ModelUnavailable
from likewise.library import Likewise
from tests.server.test_segments import COLD, EMBED, SEARCH, SETTINGS, faults, segment, stored

__all__ = ["SETTINGS"]


async def test_a_model_that_is_not_allowed_any_more_is_no_fault_of_the_server(
    client: httpx2.AsyncClient, shared: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    await stored(client, segment("manual"), EMBED)

    async def refuse(*_: object) -> None:
        raise ModelNotAllowed

    # When the parts below find that out
    monkeypatch.setattr(shared.runtime.searcher, "search", refuse)
    answer = await client.post(SEARCH, json={"query_text": COLD})
    # Then
    assert (answer.status_code, faults(answer)) == (422, {"/model": "model_not_allowed"})


async def test_a_parameter_that_is_wrong_is_one_fault_at_its_place(client: httpx2.AsyncClient) -> None:
    for query, pointer in (("status=x", "/status"), ("status=", "/status"), ("limit=0", "/limit")):
        answer = await client.get(f"/jobs?{query}")
        assert answer.status_code == 422
        assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 10**9}, {"threshold": float("nan")}, {"threshold": 2.0}])
async def test_what_a_program_asks_has_the_same_bounds(lw: Likewise, wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        await lw.segments.search(await lw.tenant(), SegmentQuery("x", **wrong))


async def test_a_search_waits_for_a_process_that_has_its_model(lw: Likewise) -> None:
    # Given a search of a model that another process allows
    waiting = orjson.dumps({"query_text": "x", "model": "mpnet-base"})
    # Then this one leaves it to the others
    with pytest.raises(ModelUnavailable):
        await lw.segments.run_search(await lw.tenant(), waiting, _progress)


async def _progress(done: int, total: int) -> None:
    """Nobody asks."""
