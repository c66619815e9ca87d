"""Every block of code in the pages runs on an empty data folder, or stands in a table that says why it cannot."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from dotenv import dotenv_values

import likewise
from likewise import filters
from likewise.apps.checking import checked
from likewise.apps.collections.schemas import CollectionIn, SearchIn
from likewise.cli import main
from likewise.embedding.models import Catalogue
from likewise.library import Likewise
from likewise.search.reranking import RerankerCatalogue
from likewise.settings import load_settings
from likewise.testing import LiveServer, open_folder

ROOT = Path(__file__).parents[1]
ADDRESS = "http://127.0.0.1:8080"
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# Ids and keys that the pages shorten: whoever reads puts their own there.
SHORTENED = re.compile(r"[0-9a-zA-Z]{4,}\.\.\.|sk-\.\.\.|:\.\.\.@")

# By a page and words of a block: why it is not run. Its commands, options and settings are checked all the same.
NOT_RUN = {
    ("README.md", "make demo"): "it sets up an environment, and runs these tests",
    ("CONTRIBUTING.md", "make test"): "it runs these tests",
    ("docs/auth.md", "issuer.example"): "it wants an identity provider; tests/auth has one of its own",
    ("docs/auth.md", "LIKEWISE_DEV_JWT_SECRET"): "it wants a server of its own; tests/cli/test_token.py has one",
    ("docs/benchmarks.md", "make bench"): "it takes minutes, and its own environment",
    ("docs/cache.md", "likewise[redis]"): "it wants a Redis; tests/embedding/test_redis.py has one",
    ("docs/cache.md", "redis-cli"): "it is of another program",
    ("docs/cache.md", "likewise cache warm"): "it wants a Redis; tests/cli/test_cache.py has one",
    ("docs/embed.md", "from openai"): "another environment has the clients: tests/clients/test_examples.py runs it",
    ("docs/embed.md", "from langchain_openai"): "as above",
    ("docs/embed.md", "from llama_index"): "as above",
    ("docs/embed.md", "import litellm"): "as above",
    ("docs/embed.md", "import httpx\n"): "as above",
    ("docs/models.md", "LIKEWISE_OPENAI_API_KEY"): "it wants a key of OpenAI's",
    ("docs/models.md", "likewise[torch]"): "it installs gigabytes",
    ("docs/observability.md", "likewise[otel]"): "it wants a collector; tests/observe has one",
    ("docs/privacy.md", "--lost"): "it asks whoever runs it; tests/cli/test_keys.py answers",
    ("docs/rerank.md", "LIKEWISE_RERANKER"): "it fetches a model; tests/search has one of its own",
    ("docs/rerank.md", "--rerank"): "as above",
    ("docs/rerank.md", "/v1/rerank"): "as above",
    ("docs/start.md", "make demo"): "it sets up an environment",
    ("docs/start.md", "--require-hashes"): "it sets up an environment",
    ("docs/start.md", "db.example.org"): "it wants a database of somebody's own; tests/db has one",
}
# Languages whose blocks are read by what would read them.
DATA = ("json", "toml", "yaml", "sh")


@dataclass(frozen=True)
class Block:
    """A block of code: its page, the line that it begins at, its language, and what is in it."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run; None if it is."""
        return next((NOT_RUN[row] for row in NOT_RUN if row[0] == self.page and row[1] in self.text), None)

    @property
    def commands(self) -> list[str]:
        """Each command after a prompt, to its end: quotes and backslashes lead to the next line."""
        made: list[str] = []
        whole = True
        for line in self.text.splitlines():
            if whole and line.startswith("$ "):
                made.append(line[2:])
            elif not whole:
                made[-1] += "\n" + line
            else:
                continue  # what the command before answered
            whole = _is_whole(made[-1])
        return made


def _is_whole(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return not command.endswith("\\")


def _blocks() -> Iterator[Block]:
    for file in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "CONTRIBUTING.md"):
        text = file.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            line = text[: found.start()].count("\n") + 1
            yield Block(str(file.relative_to(ROOT)), line, found[1], found[2])


BLOCKS = list(_blocks())
CONSOLE = [block for block in BLOCKS if block.language == "console"]
PYTHON = [block for block in BLOCKS if block.language == "python" and block.reason is None]


def named(blocks: Sequence[Block]) -> Any:
    return pytest.mark.parametrize("block", blocks, ids=[block.name for block in blocks])


def test_no_block_is_left_out_and_no_row_without_its_block() -> None:
    assert {block.language for block in BLOCKS} <= {"console", "python", *DATA}
    for (page, words), reason in NOT_RUN.items():
        assert any(block.page == page and words in block.text for block in BLOCKS), (page, words)
        assert all((ROOT / named).exists() for named in re.findall(r"tests/[\w/]+(?:\.py)?", reason)), reason


# Commands


@pytest.fixture(scope="module")
async def server(real_models: Path) -> AsyncIterator[LiveServer]:
    """A server with an empty data folder; the model has been fetched."""
    folder = open_folder()
    try:
        async with LiveServer(folder, {"LIKEWISE_MODELS_DIR": str(real_models)}).running() as live:
            yield live
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@pytest.mark.parametrize("page", sorted({block.page for block in CONSOLE if block.reason is None}))
async def test_the_commands_of_a_page_run_one_after_the_other(
    page: str, server: LiveServer, real_models: Path, tmp_path: Path
) -> None:
    # Given what the pages speak of
    if shutil.which("curl") is None and not os.environ.get("CI"):
        pytest.skip("there is no curl")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "pump.txt").write_text("the pump fails when it is cold")
    (tmp_path / "tickets.jsonl").write_text('{"id": "7", "text": "the valve leaks"}\n')
    # When
    commands = [one for block in CONSOLE if block.page == page and block.reason is None for one in block.commands]
    script = "\n".join(
        [
            "set -euo pipefail",
            'curl() { command curl --fail-with-body --silent --show-error "$@"; echo; }',
            *(one for one in commands if not SHORTENED.search(one) and not re.search(r"likewise serve\b", one)),
        ]
    )
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", script.replace(ADDRESS, server.url)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=_environment(LIKEWISE_DATA_DIR=str(server.data_dir), LIKEWISE_MODELS_DIR=str(real_models)),
    )
    # Then
    assert done.returncode == 0, done.stdout + done.stderr


def _environment(**settings: str) -> dict[str, str]:
    """An environment with `likewise` on the path and these settings alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIKEWISE_")}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"} | settings


@named(CONSOLE)
def test_commands_options_settings_and_extras_are_real(block: Block) -> None:
    assert block.commands
    extras = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\[", _read("pyproject.toml"), re.DOTALL)
    assert extras is not None
    for command in block.commands:
        for setting in re.findall(r"\b(LIKEWISE_[A-Z_]+)=", command):
            assert setting in _read("docs/settings.md"), setting
        for target in re.findall(r"\bmake (\w[\w-]*)", command):
            assert re.search(rf"^{target}:", _read("Makefile"), re.MULTILINE), target
        for benchmark in re.findall(r"\bBENCH=(\w+)", command):
            assert importlib.util.find_spec(f"benchmarks.{benchmark}") is not None, benchmark
        for extra in re.findall(r"likewise\[(\w+)\]", command):
            assert re.search(rf"^{extra} = ", extras[1], re.MULTILINE), extra
        for words in re.findall(r"(?:^|[|(] ?|^\w+=\S+ )likewise ([^|)#\n]*)", command):
            _check_verb(shlex.split(words.replace("&", " ")))


def _check_verb(words: Sequence[str]) -> None:
    """See that the command line knows a verb, and each option that it is given."""
    verb: Any = typer.main.get_command(main.app)
    for word in words:
        if hasattr(verb, "get_command"):
            verb = verb.get_command(verb.context_class(verb), word)
            assert verb is not None, words
        elif word.startswith("-") and word != "-":
            assert word in {option for one in verb.params for option in one.opts}, words


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# Python


@named([block for block in PYTHON if "asyncio.run(" not in block.text])
async def test_python_within_a_loop(block: Block, lw: Likewise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likewise, "open", lambda: contextlib.nullcontext(lw))
    names: dict[str, Any] = {"likewise": likewise}
    body = "\n".join(f"    {line}" for line in block.text.splitlines())
    exec(f"async def example():\n{body}\n", names)
    await names["example"]()


@named([block for block in PYTHON if "asyncio.run(" in block.text])
def test_a_program_on_a_machine_that_has_nothing_yet(block: Block, tmp_path: Path) -> None:
    # Given an empty home, no data and no model
    folder = open_folder()
    environment = _environment(
        HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), HF_HOME=str(tmp_path), LIKEWISE_DATA_DIR=str(folder)
    )
    environment.pop("HF_HUB_CACHE", None)
    program = [sys.executable, "-c", block.text]
    try:
        # When it runs for the first time, and once more
        for _ in range(2):
            done = subprocess.run(program, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path)
            if "likewise models pull" in done.stderr and not os.environ.get("CI"):
                pytest.skip("the default model's weights cannot be fetched")
            # Then it prints its answer
            assert done.returncode == 0, done.stderr
            assert re.search(r"^1 0\.\d+$", done.stdout, re.MULTILINE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# What is read


@named([block for block in BLOCKS if block.language == "json"])
def test_json_is_json_and_what_is_sent_is_taken(block: Block) -> None:
    value = json.loads(block.text)
    if "policy" in value:
        checked(CollectionIn, value)
    elif "query" in value:
        checked(SearchIn, value)
    elif "$or" in value:
        filters.parse(value)


@named([block for block in BLOCKS if block.language == "toml"])
def test_the_models_of_a_file_are_taken(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in re.findall(r'key_variable = "(\w+)"', block.text):
        monkeypatch.setenv(variable, "secret")
    rows = tmp_path / "models.toml"
    rows.write_text(block.text)
    settings = load_settings(models_file=rows, data_dir=tmp_path)
    assert Catalogue(settings).specs()
    RerankerCatalogue(settings)


@named([block for block in BLOCKS if block.language == "sh"])
def test_lists_of_settings_are_taken(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings").write_text(block.text.replace("PROJECT", "project").replace("TENANT.", "tenant."))
    for name, value in dotenv_values(tmp_path / "settings").items():
        monkeypatch.setenv(name, value or "")
    assert load_settings(auth="jwks", data_dir=tmp_path).auth == ("jwks",)


@named([block for block in BLOCKS if block.language == "yaml"])
def test_yaml_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text)
