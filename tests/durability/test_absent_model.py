"""A server without its model's weights: storing and searching by words go on, and vectors come when they are back."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from likewise.testing import LiveServer, open_folder
from tests.patience import until

TEXTS = {"a": "the pump fails when it is cold", "b": "the valve leaks oil", "c": "a sensor reports wrong pressure"}


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    """A data folder with an empty folder of models."""
    made = open_folder()
    (made / "models").mkdir()
    yield made
    shutil.rmtree(made, ignore_errors=True)


async def test_weights_that_are_absent_and_come_back(folder: Path, real_models: Path, tmp_path: Path) -> None:
    # Given a server that can reach no weights: no folder, no cache, no hub, no wheel
    environment = {
        "LIKEWISE_MODELS_DIR": str(folder / "models"),
        "LIKEWISE_OFFLINE": "true",
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path),
    }
    async with LiveServer(folder, environment).running() as server, httpx2.AsyncClient(base_url=server.url) as client:
        # Then it says so, and stores all the same
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert "minilm-l6-v2" in ready.json()["parts"]["model"]
        assert (await client.get("/readyz?strict=true")).status_code == 503
        assert (await client.post("/api/v1/collections", json={"name": "notes"})).status_code == 201
        records = [{"id": key, "text": text} for key, text in TEXTS.items()]
        assert (await client.post("/api/v1/collections/notes/records", json=records)).json()["created"] == 3
        # And words find, and say that only they did
        answer = (await client.post("/api/v1/collections/notes/search", json={"query": "leaking valves"})).json()
        assert answer["hits"][0]["id"] == "b"
        assert answer["hits"][0]["found_by"] == ["lexical"]
        assert answer["hits"][0]["similarity"] is None
        assert answer["degraded"] == ["model"]
        # And meaning is refused, not faked
        dense = await client.post("/api/v1/collections/notes/search", json={"query": "valve", "mode": "dense"})
        assert (dense.status_code, dense.json()["code"]) == (503, "weights_absent")
        assert 1 <= int(dense.headers["retry-after"]) <= 120
        # When the weights are back
        shutil.copytree(real_models / "minilm-l6-v2", folder / "models" / "coming")
        (folder / "models" / "coming").rename(folder / "models" / "minilm-l6-v2")
        # Then the vectors come without a restart
        await _embedded(client)
        question = {"query": "freezing breaks the pump"}
        answer = (await client.post("/api/v1/collections/notes/search", json=question)).json()
        assert answer["hits"][0]["id"] == "a"
        assert "dense" in answer["hits"][0]["found_by"]
        assert answer["degraded"] == []
        assert (await client.get("/readyz")).json()["status"] == "ready"


async def test_callers_with_keys_do_not_hear_where_on_the_machine_weights_are_looked_for(
    tmp_path: Path, folder: Path
) -> None:
    # Given a server for others, without the weights
    environment = {
        "LIKEWISE_AUTH": "keys",
        "LIKEWISE_OFFLINE": "true",
        "LIKEWISE_MODELS_DIR": str(folder / "models"),
        "HF_HUB_CACHE": str(tmp_path),
    }
    async with LiveServer(folder, environment).running() as server, httpx2.AsyncClient(base_url=server.url) as client:
        # When
        ready = await client.get("/readyz")
    # Then
    assert "doctor" in ready.json()["parts"]["model"]
    assert str(tmp_path) not in ready.text
    assert str(folder) not in ready.text


async def _embedded(client: httpx2.AsyncClient) -> None:
    async def all_there() -> bool:
        vectors: int = (await client.get("/api/v1/collections/notes/stats")).json()["vectors"]
        return vectors == 3

    await until(all_there)
