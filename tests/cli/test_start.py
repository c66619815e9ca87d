"""What keeps a server or a worker from starting: one line that names the mend, and exit code 3."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from likewise.cli.running import NOT_STARTED
from tests.cli.conftest import PROGRAM, Run
from tests.embedding import tiny


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[None]:
    """A server, until the block ends."""
    arguments = [*PROGRAM, "serve", "--port", "0", "--json"]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert orjson.loads(process.stdout.readline())["status"] == "listening"
        yield
        os.kill(process.pid, signal.SIGTERM)


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


@pytest.mark.parametrize("verb", [["serve", "--port", "0"], ["worker"]])
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
    # When
    done = likewise_command("serve", "--port", "0", LIKEWISE_MODEL=str(folder))
    # Then
    assert done.returncode == NOT_STARTED
    assert "is not the one that the stored vectors were made with" in done.stderr
    assert "Bring the old files back" in done.stderr


def test_a_model_that_is_absent_or_away_stops_nothing(environment: dict[str, str], folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with serving({**environment, "LIKEWISE_MODEL": str(folder)}):
        pass
    away = {"LIKEWISE_MODEL": "text-embedding-3-small", "LIKEWISE_OPENAI_API_KEY": "x"}
    with serving({**environment, **away, "LIKEWISE_OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}):
        pass
