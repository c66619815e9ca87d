"""The examples of docs/embed.md do what they say, with nothing changed but the address."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import SHORTENED, LiveServer

PAGE = Path(__file__).parents[2] / "docs" / "embed.md"
TEXT = PAGE.read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"
BLOCK = "^```{}\n(.*?)^```"
# A command, to the end of its last line.
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)$", re.MULTILINE)
# One that fails says so, and shows nothing else.
CURL = 'set -euo pipefail; curl() { command curl --fail --silent --show-error "$@"; echo; }'


def blocks(language: str) -> list[str]:
    return re.findall(BLOCK.format(language), TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", blocks("python"), ids=lambda example: example.split()[1])
def test_python(example: str, server: LiveServer) -> None:
    assert ADDRESS in example
    exec(example.replace(ADDRESS, server.url), {})


@pytest.mark.parametrize("example", blocks("console"))
def test_console(example: str, server: LiveServer) -> None:
    # Given
    if shutil.which("curl") is None and not os.environ.get("CI"):
        pytest.skip("there is no curl")
    commands = COMMAND.findall(example)
    # When
    script = "\n".join([CURL, *commands]).replace(ADDRESS, server.url)
    done = subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True)
    # Then
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == sum(command.startswith("curl") for command in commands)


def test_the_page_names_the_model_that_is_here_to_be_shortened() -> None:
    assert [SHORTENED in block for block in blocks("toml")] == [True]
