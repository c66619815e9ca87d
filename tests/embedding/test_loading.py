"""What keeps a model from loading: for how long it is believed, and for how long it is waited for."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from likewise.embedding import loading
from likewise.embedding.embedder import Embedder
from likewise.embedding.files import weights
from likewise.embedding.providers import openvino
from likewise.errors import ModelUnavailable
from likewise.settings import Settings
from tests.embedding import tiny
from tests.patience import PATIENCE, until

Make = Callable[[Path], Embedder]


@pytest.fixture
async def make(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """An embedder of a folder, which tries again soon."""
    monkeypatch.setattr(loading, "LOCAL_RETRY_SECONDS", 0.02)
    made: list[Embedder] = []

    def embedder(folder: Path) -> Embedder:
        made.append(Embedder(settings.model_copy(update={"model": str(folder)})))
        return made[-1]

    yield embedder
    for one in made:
        await one.close()


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a folder's files were looked at, and how often they were read to be loaded."""
    counted: Counter[str] = Counter()

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            counted[name] += 1
            return call(*arguments)

        return called

    monkeypatch.setattr(weights, "deciding_files", counting("looked at", weights.deciding_files))
    monkeypatch.setattr(openvino, "load", counting("loaded", openvino.load))
    return counted


async def ready(embedder: Embedder) -> None:
    await until(embedder.is_ready)


async def test_what_fails_beside_the_files_is_tried_again(make: Make, settings: Settings, tmp_path: Path) -> None:
    # Given whole files, and a place for their checksum that cannot be read
    folder = tiny.write_folder(tmp_path / "model", tiny.weights())
    first = make(folder)
    await first.opened()
    (record,) = (settings.models_folder / ".checksums").glob("*.json")
    kept = record.read_bytes()
    record.unlink()
    record.mkdir()
    embedder = make(folder)
    with pytest.raises(ModelUnavailable, match="IsADirectoryError"):
        await embedder.opened()
    # When it can be read, and no file of the model has changed
    record.rmdir()
    record.write_bytes(kept)
    # Then the model comes
    await ready(embedder)


async def test_a_checksum_that_is_accepted_is_enough(make: Make, settings: Settings, tmp_path: Path) -> None:
    # Given other weights than those first seen
    folder = tiny.write_folder(tmp_path / "model", tiny.weights(1))
    await make(folder).opened()
    (folder / "model.safetensors").unlink()
    tiny.write_safetensors(folder / "model.safetensors", tiny.weights(2))
    embedder = make(folder)
    with pytest.raises(ModelUnavailable, match="to accept it"):
        await embedder.opened()
    # When the record is removed, as the error says
    (record,) = (settings.models_folder / ".checksums").glob("*.json")
    record.unlink()
    # Then they are accepted
    await ready(embedder)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
async def test_a_broken_file_is_believed_until_it_is_mended(
    make: Make, tmp_path: Path, times: Counter[str], name: str
) -> None:
    # Given any one file that is broken
    folder = tiny.write_folder(tmp_path / "model", tiny.weights())
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(b"broken")
    embedder = make(folder)
    with pytest.raises(ModelUnavailable):
        await embedder.opened()
    # When the files are looked at again and again
    await until(lambda: times["looked at"] >= 10)
    # Then they are not read as often: once more at most, as whole weights that were new have their checksum recorded by
    # the first time, and what is recorded decides too
    assert 1 <= times["loaded"] <= 2
    # When it is mended
    (folder / name).write_bytes(whole)
    # Then the model comes
    await ready(embedder)


async def test_files_that_went_and_came_back_are_not_called_absent(make: Make, tmp_path: Path) -> None:
    # Given a broken model, whose folder goes away for a while
    folder = tiny.write_folder(tmp_path / "model", tiny.weights())
    (folder / "model.safetensors").write_bytes(b"broken")
    embedder = make(folder)
    with pytest.raises(ModelUnavailable, match="is not a safetensors file"):
        await embedder.opened()
    folder.rename(tmp_path / "aside")
    await until(lambda: embedder.states()[0].state == "absent")
    # When it is back as it was
    (tmp_path / "aside").rename(folder)
    # Then it is broken
    await until(lambda: embedder.states()[0].state == "failed")


async def test_whoever_has_the_patience_waits_for_a_slow_model(make: Make, tmp_path: Path) -> None:
    # Given a model that is not loaded in the time that a request waits
    folder = tiny.write_folder(tmp_path / "model", tiny.weights())
    embedder = make(folder)
    with pytest.raises(ModelUnavailable, match="is still being loaded"):
        await embedder.opened(patience=0.0)
    # When it is asked for with more, then it is there
    assert (await asyncio.wait_for(embedder.opened(patience=30.0), PATIENCE)).dimension == 32
