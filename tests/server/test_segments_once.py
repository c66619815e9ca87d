"""What is sent again with its Idempotency-Key: to segments and jobs it costs nothing, and a crash loses no answer."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from likewise.auth.quotas import Quotas
from likewise.errors import DatabaseUnavailable, Invalid
from likewise.library import Likewise
from tests.server.conftest import calling
from tests.server.test_segments import BATCH, COLD, DOCUMENTS, EMBED, LATER, ended, segment

BODIES: dict[str, dict[str, Any]] = {
    EMBED: segment("manual"),
    BATCH: {"asset_id": "manual", "segments": [{"segment_id": "1", "text": COLD}]},
    DOCUMENTS: {"asset_id": "manual", "text": COLD},
    LATER: {"query_text": COLD},
}


def keyed() -> dict[str, str]:
    return {"idempotency-key": uuid4().hex}


@pytest.mark.parametrize("path", BODIES)
async def test_a_repetition_is_neither_charged_nor_refused(
    client: httpx2.AsyncClient, shared: Likewise, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # Given a minute's tokens for one request
    for name, value in vars(Quotas(10)).items():
        monkeypatch.setattr(shared.runtime.quotas, name, value)
    key = keyed()
    first = await client.post(path, json=BODIES[path], headers=key)
    assert first.status_code in (200, 202), first.text
    # When it comes again, after others have used up the rest
    again = [await client.post(path, json=BODIES[path], headers=key) for _ in range(5)]
    assert (await client.post(path, json=BODIES[path], headers=keyed())).status_code == 429
    again.append(await client.post(path, json=BODIES[path], headers=key))
    # Then
    assert {(one.status_code, one.content) for one in again} == {(first.status_code, first.content)}
    # And what was refused may be sent again with its key
    other = keyed()
    assert (await client.post(path, json=BODIES[path] | {"model": "nothing"}, headers=other)).status_code == 422
    assert (await client.post(path, json=BODIES[path], headers=other)).status_code == 429


@pytest.mark.parametrize("verb", ["cancel", "retry"])
async def test_a_job_that_was_changed_before_a_crash_is_answered_after_it(
    lw: Likewise, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    # Given a job that nobody has done, or one that has failed
    job, tenant = uuid4(), await lw.tenant()
    if verb == "retry":
        lw.runtime.tasks.register("wrong", wrong)
    async with lw.runtime.pool.tenant(tenant) as tx:
        await lw.runtime.tasks.add(tx, job, "wrong")
    key, real = keyed(), getattr(lw.jobs, verb)

    async def dies(*arguments: Any, **named: Any) -> None:
        await real(*arguments, **named)
        raise DatabaseUnavailable

    async with calling(lw) as client:
        if verb == "retry":
            assert (await ended(client, str(job)))["status"] == "FAILED"
        # When the server dies between its commit and its answer
        monkeypatch.setattr(lw.jobs, verb, dies)
        assert (await client.post(f"/jobs/{job}/{verb}", headers=key)).status_code == 503
        monkeypatch.setattr(lw.jobs, verb, real)
        # Then who asks again hears what was done
        again = await client.post(f"/jobs/{job}/{verb}", headers=key)
    assert (again.status_code, again.headers.get("idempotency-replayed")) == (200, "true"), again.text
    assert again.json()["status"] == {"cancel": "CANCELLED", "retry": "PENDING"}[verb]


async def wrong(*_: object) -> dict[str, Any]:
    """A task that fails each time."""
    raise Invalid("No.")
