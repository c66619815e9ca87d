"""The command line as a process of its own, over a database of the test file; standard input for one that is not."""

import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from likewise.cli import terminal
from likewise.testing import ThrowawayPostgres
from tests.cli.warm import WarmProgram
from tests.environment import without_settings
from tests.patience import PATIENCE

PROGRAM = [sys.executable, "-c", "from likewise.cli.main import run; run()"]
ROOT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]
Stdin = Callable[[bytes], None]


@pytest.fixture(scope="module")
async def environment(
    postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, str]]:
    """The environment of the processes: a database, and no model nor a network to fetch one from."""
    async with postgres.database() as urls:
        yield without_settings() | {
            "PYTHONPATH": str(ROOT),
            "LIKEWISE_DATA_DIR": str(tmp_path_factory.mktemp("data")),
            "LIKEWISE_DATABASE_URL": urls.owner,
            "LIKEWISE_DATABASE_SERVING_URL": urls.serving,
            "LIKEWISE_OFFLINE": "true",
            "HF_HOME": str(tmp_path_factory.mktemp("hub")),
            "COLUMNS": "120",
        }


@pytest.fixture(scope="module")
def likewise_command(environment: dict[str, str]) -> Iterator[Run]:
    """Runs the program to its end."""
    with WarmProgram(environment, Path(environment["LIKEWISE_DATA_DIR"]), timeout=PATIENCE) as program:

        def run(*arguments: str, input: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
            return program.run(arguments, input, variables)

        yield run


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stdin]:
    """Says what a command that runs in this process reads from standard input."""
    with ExitStack() as stack:

        def give(read: bytes) -> None:
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(read)
            file.seek(0)
            monkeypatch.setattr(terminal, "STDIN", file.fileno())

        yield give
