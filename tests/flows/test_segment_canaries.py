"""A canary in every text, query and document, through every failure: it is nowhere in clear, on disk or told."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from likewise.testing import FakeProvider, LiveWorker, ReceivedRequest, ScriptedReply
from tests.files import files_with
from tests.flows.house import House, open_house
from tests.patience import PATIENCE, until

# In texts and queries; in ids, metadata and names of fields.
TEXT, ID = "zwitscher", "trillerpfeife"
ASSET = f"{ID}/asset"
AWAY = ScriptedReply.of({"error": "away"}, 503)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """As it is by default: no text is kept. What a killed worker held is soon done by another."""
    async with open_house(tmp_path, LIKEWISE_LEASE_SECONDS="2") as house:
        yield house


@pytest.fixture
async def worker(house: House) -> AsyncIterator[LiveWorker]:
    """Its worker."""
    async with house.worker().running() as worker:
        yield worker


async def on_disk(house: House, *wanted: bytes) -> list[str]:
    """The files of the data folder that hold any of these bytes, after everything in memory has been written."""
    await house.asked("CHECKPOINT", "postgres")
    found = await asyncio.to_thread(files_with, house.folder, {str(place): one for place, one in enumerate(wanted)})
    return sorted({file for files in found.values() for file in files})


async def embed(house: House, segment: str, text: str) -> str:
    """The job of one segment."""
    body = {"asset_id": ASSET, "segment_id": segment, "text": text, "metadata": {ID: ID}}
    return await accepted(house, "/vectors/embed", body)


async def accepted(house: House, path: str, body: Any) -> str:
    """The job of a request."""
    answer = await house.client.post(path, json=body)
    assert answer.status_code in (200, 202), answer.text
    return str(answer.json()["job_id"])


def long_text(word: str) -> str:
    """A document with a word in it here and there, and the rest such that Postgres cannot press it together."""
    dice = random.Random(1)
    return " ".join(f"{word} {' '.join(dice.randbytes(8).hex() for _ in range(10))}." for _ in range(30))


async def everything_sent(house: House) -> list[str]:
    """Jobs of each kind, with the canary in each; the second's text is refused by the model."""
    batch = {"asset_id": ID, "segments": [{"segment_id": str(n), "text": f"{n} {TEXT}"} for n in range(20)]}
    return [
        await embed(house, "one", f"{TEXT} of a pump"),
        await embed(house, "two", f"poison and {TEXT}"),
        await accepted(house, "/vectors/documents", {"asset_id": "document", "text": long_text(TEXT)}),
        await accepted(house, "/vectors/search/async", {"query_text": f"where is {TEXT}?"}),
        await accepted(house, "/vectors/embed/batch", batch),
    ]


async def refused(house: House) -> None:
    """Requests that are wrong in as many ways, each with both canaries: what is answered repeats none."""
    deep: Any = {ID: ID}
    for _ in range(33):
        deep = {ID: deep}
    right = {"asset_id": ID, "segment_id": ID, "text": TEXT, "query_text": TEXT}
    right |= {"segments": [{"segment_id": ID, "text": TEXT}]}
    wrong: list[Any] = [
        right | {"asset_id": f"{ID}\0"},
        right | {"asset_id": ID * 100, "segment_id": ID * 100, "text": 5, "query_text": [TEXT]},
        right | {"segments": [{"segment_id": ID, "text": TEXT}] * 2, "model": ID},
        right | {"text": " ", "query_text": " ", "segments": [{"segment_id": f"{ID}\n", "text": TEXT}]},
        right | {"filters": {ID: {"$x": TEXT}}, "text": None, "segments": [ID]},
        right | {"filters": {f"{ID}'": TEXT}, "text": None, "segments": {ID: TEXT}},
        *(
            right | {"metadata": one, "filters": {ID: {"$x": one}}, "segments": [right | {"metadata": one}]}
            for one in _of_size(deep)
        ),
    ]
    for path in ("/vectors/embed", "/vectors/embed/batch", "/vectors/documents", "/vectors/search"):
        for body in (f'{{"text": "{TEXT}"', f'"{TEXT}"', f'["{TEXT}"]', f'{{"{ID}": "{TEXT}"}}'):
            await _refused(house, path, content=body, headers={"content-type": "application/json"})
        for one in wrong:
            # What is wrong of segments and metadata is none of a search's.
            fine = path.endswith("search") and "filters" not in one
            await _refused(house, path, json=one | {"limit": 0} if fine else one)
    for path in (f"/jobs/{ID}", f"/vectors/asset/{ID}/nothing", f"/vectors/{ID}", f"/{ID}", f"/jobs?status={ID}"):
        await _refused(house, path, "DELETE" if "vectors" in path else "GET")


def _of_size(deep: Any) -> list[Any]:
    """Metadata that is too deep, and too large."""
    return [deep, {ID: f"{ID} " * 5_000}]


async def _refused(house: House, path: str, method: str = "POST", **sent: Any) -> None:
    answer = await house.client.request(method, path, **sent)
    assert 400 <= answer.status_code < 500, (path, answer.text)
    # Where a filter is wrong is told by the name of its field, which is no value.
    assert ID not in answer.text.replace(f'"/filters/{ID}', "") + str(answer.headers), path


async def test_a_text_is_nowhere_in_clear_whatever_happens(house: House, worker: LiveWorker) -> None:
    # Given requests that are wrong, and a model that is known and goes away: everything waits
    await refused(house)
    await house.ended(await embed(house, "warm", "it is warm"))
    house.upstream.always = AWAY
    jobs = await everything_sent(house)
    assert await on_disk(house, TEXT.encode()) == []
    # And a search that cannot be answered now
    assert (await house.client.post("/vectors/search", json={"query_text": TEXT})).status_code == 503
    # When Postgres and the worker are killed, the worker with texts in the model
    os.kill(house.server.postmaster_pid(), signal.SIGKILL)
    await until(lambda: _ready(house))
    house.upstream.asked.clear()
    house.upstream.gate = gate = asyncio.Event()
    house.upstream.always = _refuses_poison
    await until(lambda: any(TEXT in str(one.texts) for one in house.upstream.asked))
    await worker.kill()
    house.upstream.gate = None
    gate.set()
    assert await on_disk(house, TEXT.encode()) == []
    await worker.start()
    # Then each job ends, the poisoned text's with a failure after as many tries as it has
    await until(lambda: _hurried(house, jobs[1]))
    ends = [(await house.ended(job))["status"] for job in jobs]
    assert ends == ["SUCCEEDED", "FAILED", "SUCCEEDED", "SUCCEEDED", "SUCCEEDED"]
    assert len((await house.client.get("/jobs")).json()["jobs"]) > len(jobs)
    found = await house.client.post("/vectors/search", json={"query_text": f"{TEXT} of a pump"})
    assert found.json()["results"][0]["score"] > 0.99
    # And what has waited for a day leaves without ever having been in clear
    house.upstream.always = AWAY
    late = await embed(house, "late", f"{TEXT} comes late")
    await house.asked("UPDATE waiting SET entered_at = now() - interval '25 hours'", "postgres")
    await house.asked("SELECT expire_sealed(interval '24 hours', 100)", "postgres")
    assert (await house.ended(late))["status"] == "FAILED"
    assert await on_disk(house, TEXT.encode()) == []
    # And nobody was told of a text, nor of an id but who had sent it
    assert TEXT not in (await _logged(house) + "\n".join(house.answers)).lower()
    assert ID not in await _logged(house)


async def test_where_texts_are_kept_the_same_search_of_the_disk_finds_them(tmp_path: Path) -> None:
    async with open_house(tmp_path, LIKEWISE_SEGMENTS_KEEP_TEXT="true") as house:
        await embed(house, "one", f"short-{TEXT} of a pump")
        await accepted(house, "/vectors/documents", {"asset_id": "document", "text": long_text(f"long-{TEXT}")})
        for word in ("short", "long"):
            assert await on_disk(house, f"{word}-{TEXT}".encode()) != []


async def test_after_a_purge_not_even_the_vectors_bytes_are_there(house: House, worker: LiveWorker) -> None:
    # Given a vector, on disk
    text = f"{TEXT} of a pump"
    assert (await house.ended(await embed(house, "one", text)))["status"] == "SUCCEEDED"
    assert (await house.ended(await house.embed("stays", {"stays": "another one"})))["status"] == "SUCCEEDED"
    (vector,) = (await FakeProvider(16).embed([text], "document")).vectors
    halves = vector.astype("<f2").tobytes()
    slices = (halves[:16], halves[16:])
    assert await on_disk(house, *slices)
    # When it is deleted and what is deleted is purged, beside the server
    assert (await house.client.delete(f"/vectors/asset/{ASSET}")).status_code == 204
    purge = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "likewise", "db", "purge", "--json",
        env={**os.environ, "LIKEWISE_DATA_DIR": str(house.folder), **house.environment},
    )  # fmt: skip
    assert await asyncio.wait_for(purge.wait(), PATIENCE) == 0
    # Then it is gone from every file, and what was not deleted is there
    assert await on_disk(house, *slices) == []
    found = await house.client.post("/vectors/search", json={"query_text": "another one"})
    assert [hit["payload"]["segment_id"] for hit in found.json()["results"]] == ["stays"]
    # And no line says what it was
    logged = await _logged(house)
    assert ID not in logged
    assert TEXT not in logged


async def _logged(house: House) -> str:
    """All that was logged and counted."""
    log = house.log.read_text("utf-8", "replace")
    assert '"event"' in log
    return log + (await house.client.get("/metrics")).text


async def _ready(house: House) -> bool:
    return (await house.client.get("/readyz")).status_code == 200


async def _hurried(house: House, job: str) -> bool:
    """Whether a job has ended; what pauses until its next try need not."""
    await house.asked("UPDATE waiting SET run_after = now() WHERE claim IS NULL")
    return (await house.client.get(f"/jobs/{job}")).json()["status"] == "FAILED"


def _refuses_poison(asked: ReceivedRequest) -> ScriptedReply | None:
    """400 for a batch with a text that it does not like, as a provider says it, with the text in its own words."""
    poisoned = [text for text in asked.texts if "poison" in text]
    return ScriptedReply.of({"error": {"message": f"I do not like {poisoned[0]}"}}, 400) if poisoned else None
