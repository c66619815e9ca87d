"""What keeps a server or a worker from starting: one line that names the mend, and exit code 3."""

import asyncio
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from likewise.cli.running import NOT_STARTED
from likewise.sealing import new_key
from likewise.settings import Settings
from tests.cli.conftest import PROGRAM, Run
from tests.conftest import Opener
from tests.embedding import tiny
from tests.patience import PATIENCE

SERVE, WORKER = ["serve", "--port", "0"], ["worker"]


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[None]:
    """A server, until the block ends."""
    arguments = [*PROGRAM, "serve", "--port", "0", "--json"]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], PATIENCE)[0], "it says nothing"
            assert orjson.loads(process.stdout.readline())["status"] == "listening"
            yield
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@pytest.fixture
def folder(environment: dict[str, str], tmp_path: Path) -> Path:
    """The default model of these tests, with vectors of its own in the database."""
    return tiny.write_folder(tmp_path / "model", tiny.weights(1))


def stored(likewise_command: Run, folder: Path, tmp_path: Path) -> None:
    """Something that the model has made a vector of."""
    (tmp_path / "note.txt").write_text("alpha beta gamma")
    done = likewise_command("index", str(tmp_path / "note.txt"), "-c", tmp_path.name[-20:].lower().replace("_", "-"),
                            LIKEWISE_MODEL=str(folder))  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", [SERVE, WORKER])
def test_weights_that_were_changed_stop_the_start(
    likewise_command: Run, folder: Path, tmp_path: Path, verb: list[str]
) -> None:
    # Given a model that was used, and then other weights in its place
    stored(likewise_command, folder, tmp_path)
    tiny.write_safetensors(folder / "model.safetensors", tiny.weights(2))
    # When
    done = likewise_command(*verb, LIKEWISE_MODEL=str(folder))
    # Then
    assert done.returncode == NOT_STARTED
    assert "is not the file that it should be" in " ".join(done.stderr.split())
    assert "remove it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_made_none_of_the_stored_vectors_stops_the_start(
    likewise_command: Run, environment: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    # Given other weights that somebody has accepted
    stored(likewise_command, folder, tmp_path)
    tiny.write_safetensors(folder / "model.safetensors", tiny.weights(3))
    for record in (Path(environment["LIKEWISE_DATA_DIR"]) / "models" / ".checksums").glob("*.json"):
        record.unlink()
    for verb in SERVE, WORKER:
        # When
        done = likewise_command(*verb, LIKEWISE_MODEL=str(folder))
        # Then
        assert done.returncode == NOT_STARTED, verb
        assert "is not the one that the stored vectors were made with" in done.stderr
        assert "Bring the old files back" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", [SERVE, WORKER])
@pytest.mark.parametrize("how", ["another", "lost"])
async def test_a_text_key_that_is_not_the_databases_stops_the_start(
    likewise_command: Run, open_likewise: Opener, settings: Settings, verb: list[str], how: str
) -> None:
    # Given a database where something was sealed
    async with open_likewise(worker=False) as lw, lw.runtime.pool.tenant(await lw.tenant()) as tx:
        await lw.runtime.text_keys.hold(tx)
    file, key = settings.data_dir / "text.key", new_key()
    file.unlink()
    if how == "another":
        file.write_text(key)
        file.chmod(0o600)
    # When
    done = await asyncio.to_thread(
        likewise_command, *verb, LIKEWISE_DATA_DIR=str(settings.data_dir),
        LIKEWISE_DATABASE_URL=settings.database_url, LIKEWISE_DATABASE_SERVING_URL=settings.database_serving_url,
    )  # fmt: skip
    # Then
    assert done.returncode == NOT_STARTED
    said = " ".join(done.stderr.split())
    assert ("is another key than the database's" if how == "another" else "is not there") in said
    assert "likewise keys rotate-text --lost" in said
    assert key not in said
    assert "Traceback" not in said
    # And nothing was put in its place
    assert file.exists() == (how == "another")


@pytest.mark.parametrize("verb", [SERVE, WORKER])
def test_a_reranker_that_is_none_stops_the_start(likewise_command: Run, tmp_path: Path, verb: list[str]) -> None:
    for name, folder in (
        ("ms-marco-MiniLM-L6-v2", "models/ms-marco-MiniLM-L6-v2"),
        (f"{tmp_path}/no", f"{tmp_path}/no"),
    ):
        done = likewise_command(*verb, LIKEWISE_RERANKER=name)
        assert done.returncode == NOT_STARTED
        assert "LIKEWISE_RERANKER: there is no such reranker, nor a folder /" in done.stderr
        assert f"{folder}. `likewise models list` shows" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_reranker_whose_files_are_absent_stops_nothing(environment: dict[str, str]) -> None:
    with serving({**environment, "LIKEWISE_RERANKER": "ms-marco-MiniLM-L-6-v2"}):
        pass


def test_a_model_that_is_absent_or_away_stops_nothing(environment: dict[str, str], folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with serving({**environment, "LIKEWISE_MODEL": str(folder)}):
        pass
    away = {"LIKEWISE_MODEL": "text-embedding-3-small", "LIKEWISE_OPENAI_API_KEY": "x"}
    with serving({**environment, **away, "LIKEWISE_OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}):
        pass
