"""`likewise serve` of this repository, in a process and an environment of its own."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIKEWISE = Path(__file__).parents[2] / ".venv" / "bin" / "likewise"
MODELS = Path(os.environ.get("TEST_MODELS_DIR", Path.home() / ".cache" / "likewise-tests" / "models"))
DEFAULT_MODEL = "minilm-l6-v2"
# The default model again, as if it were made to be shortened.
SHORTENED = "my-matryoshka"
# Tokens a minute: one a second.
QUOTA = 60


class Failed(Exception):
    """A command of `likewise` did not do what it was to; the message is what it said."""


@dataclass(frozen=True)
class LiveServer:
    """A server that listens.

    Args:
        url: without a path.
        settings: the LIKEWISE_* variables that it runs with.
    """

    url: str
    settings: dict[str, str]

    @property
    def api(self) -> str:
        """What OpenAI's clients call the base URL."""
        return f"{self.url}/v1"

    def key(self, tenant: str, scopes: str = "read,write") -> str:
        """A new API key."""
        made: str = json.loads(
            likewise("keys", "create", "--json", "--tenant", tenant, "--scopes", scopes, **self.settings)
        )["key"]
        return made


@contextlib.contextmanager
def running(**settings: str) -> Iterator[LiveServer]:
    """A server on a free port of the loopback, with a Postgres of its own, for the length of the block."""
    # Postgres runs as another user where we are root, and must be able to enter.
    folder = Path(tempfile.mkdtemp(prefix="likewise-clients-"))
    folder.chmod(0o755)
    settings = {"LIKEWISE_DATA_DIR": str(folder), "LIKEWISE_MODELS_DIR": str(MODELS), **settings}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [LIKEWISE, "serve", "--json", "--port", "0"], env=_environment(settings), stdout=subprocess.PIPE, stderr=log
        )
    try:
        line = process.stdout.readline() if process.stdout else b""
        if not line:
            raise Failed((folder / "log").read_text())
        yield LiveServer(json.loads(line)["url"], settings)
    finally:
        process.terminate()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def likewise(*arguments: str, **settings: str) -> str:
    """What a command says on its standard output; Failed with what it says on the other."""
    done = subprocess.run(
        [LIKEWISE, *arguments], check=False, env=_environment(settings), capture_output=True, text=True
    )
    if done.returncode:
        raise Failed(done.stderr)
    return done.stdout


def _environment(settings: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LIKEWISE_")}
    return {**inherited, **settings}
