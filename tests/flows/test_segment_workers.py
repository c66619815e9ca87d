"""Workers in processes of their own on the segments of one server: racing, and one that slept past its lease."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from likewise.testing import ReceivedRequest, ScriptedReply
from tests.flows.house import House, open_house
from tests.models_file import models_file
from tests.patience import until

SENDERS, BATCHES, IN_EACH = 8, 10, 6


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Nothing is remembered: what is embedded twice is asked for twice."""
    async with open_house(tmp_path, LIKEWISE_CACHE_BYTES="0") as house:
        yield house


async def test_two_workers_that_race_embed_each_text_once(house: House, tmp_path: Path) -> None:
    # Given two that can be told apart by the key that they show, and a model that takes its time
    models_file(tmp_path, house.upstream.url, key_variable="OURS_KEY")
    house.upstream.always = lambda asked: replace(ScriptedReply.of(asked.good), delay=0.02)
    async with house.worker(OURS_KEY="one").running(), house.worker(OURS_KEY="two").running():
        await house.ended(await house.embed("warm", ["it is warm"]))
        # When many small batches come at once
        sent = await asyncio.gather(*(_sent(house, f"sender {number}") for number in range(SENDERS)))
        ends = [await house.ended(job) for jobs, _ in sent for job in jobs]
    # Then
    assert {end["status"] for end in ends} == {"SUCCEEDED"}
    wanted = {text for _, texts in sent for text in texts}
    asked = [(one.headers["authorization"], text) for one in house.upstream.asked for text in one.texts]
    theirs = [(key, text) for key, text in asked if text in wanted]
    assert {key for key, _ in theirs} == {"Bearer one", "Bearer two"}
    assert sorted(text for _, text in theirs) == sorted(wanted)
    assert await house.asked("SELECT count(*) FROM waiting") == [(0,)]


async def _sent(house: House, asset: str) -> tuple[list[str], list[str]]:
    """The jobs of so many batches, one after the other, and their texts."""
    texts = [[f"{asset} {batch} {place} is cold" for place in range(IN_EACH)] for batch in range(BATCHES)]
    jobs = [await house.embed(f"{asset}, {place}", one) for place, one in enumerate(texts)]
    return jobs, [text for batch in texts for text in batch]


async def test_a_worker_that_slept_past_its_lease_writes_nothing(house: House, tmp_path: Path) -> None:
    log = tmp_path / "sleeper"
    sleeper = house.worker(log)
    async with sleeper.running():
        # Given a worker that is stopped while its text is in the model
        await house.ended(await house.embed("warm", ["warm"]))
        house.upstream.gate = gate = asyncio.Event()
        job = await house.embed("a", ["the pump freezes"])
        await until(lambda: house.upstream.under_way == 1)
        os.kill(sleeper.pid, signal.SIGSTOP)
        # When its lease is over, and another takes over, whose model answers otherwise: the two can be told apart
        house.upstream.gate = None
        house.upstream.always = _of_other_texts
        await house.asked("UPDATE waiting SET run_after = now() RETURNING content")
        other = house.worker()
        async with other.running():
            assert (await house.ended(job))["status"] == "SUCCEEDED"
        before = await _vectors(house)
        # And the sleeper wakes with its answer, and tries to write it
        house.upstream.always = None
        gate.set()
        os.kill(sleeper.pid, signal.SIGCONT)
        await until(lambda: '"texts_lost"' in log.read_text())
        await house.ended(await house.embed("b", ["it is awake and works"]))
        # Then what the other wrote is there, and nothing else
        after = await _vectors(house)
    assert before.items() <= after.items()
    assert len(after) == 3
    assert (await house.client.get(f"/jobs/{job}")).json()["status"] == "SUCCEEDED"


def _of_other_texts(asked: ReceivedRequest) -> ScriptedReply | None:
    """For a text the vector of nothing like it; the probe is answered well."""
    if asked.texts != ["the pump freezes"]:
        return None
    vector = [1.0, *[0.0] * 15]
    return ScriptedReply.of({**asked.good, "data": [{"object": "embedding", "index": 0, "embedding": vector}]})


async def _vectors(house: House) -> dict[int, tuple[str, Any]]:
    """Each content's vector and when it was written."""
    ((generation,),) = await house.asked("SELECT id FROM generations")
    rows = await house.asked(f"SELECT content, embedding::text, embedded_at FROM vec_{generation}")
    return {content: (vector, at) for content, vector, at in rows}
