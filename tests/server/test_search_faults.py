"""What is wrong with a search of segments is said of the request that its caller sent."""

import httpx2
import pytest

from likewise.errors import ModelNotAllowed
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
