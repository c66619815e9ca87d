"""The list of commands: each is imported when it is called, and apps bring their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from likewise.apps.registry import App
from likewise.cli import main
from likewise.cli.main import COMMANDS
from tests.cli.conftest import ROOT

greetings = typer.Typer(help="Greetings, in English.")


@greetings.command()
def hello(name: str) -> None:
    """Greet somebody."""
    print(f"Hello, {name}.")


@greetings.command()
def goodbye(name: str) -> None:
    """Take leave of somebody."""
    print(f"Goodbye, {name}.")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app with a group of commands, and one with a command alone."""
    here = {"greetings": f"{__name__}:greetings", "hello": f"{__name__}:hello"}
    monkeypatch.setattr(main, "APPS", (App("greetings", "tests.cli", commands=here),))


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main.main(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("app")
def test_those_of_apps_are_listed_after_those_of_likewise(capsys: pytest.CaptureFixture[str]) -> None:
    listed = shown(capsys, "--help").splitlines()
    assert [line.split(maxsplit=1) for line in listed[-2:]] == [
        ["greetings", "Greetings, in English."],
        ["hello", "Greet somebody."],
    ]


@pytest.mark.usefixtures("app")
def test_those_of_apps_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Take leave of somebody." in shown(capsys, "greetings", "--help")
    assert shown(capsys, "greetings", "hello", "Ada") == "Hello, Ada.\n"
    assert shown(capsys, "hello", "Ada") == "Hello, Ada.\n"


@pytest.mark.parametrize("name", [row.name for row in COMMANDS])
def test_every_command_of_the_list_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"Usage: likewise {name} " in shown(capsys, name, "--help")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["usage", "--by", "nope"], "'--by': 'nope' is not one of 'model', 'day', 'hour', 'tenant'."),
        (["jobs", "list", "--status", "DONE"], "'--status': 'DONE' is not one of 'PENDING', 'RUNNING',"),
        (["jobs", "list", "--limit", "0"], "'--limit': This must be at least 1."),
        (["jobs", "show", "x"], "This must be a UUID."),
        (["search", "x", "-c", "notes", "--limit", "101"], "'--limit': This must be at most 100."),
        (["search", "x", "-c", "notes", "--limit", "ten"], "'--limit': This must be a whole number."),
        (["serve", "--port", "1e3"], "'--port': This must be a whole number."),
        (["serve", "--port", "65536"], "'--port': This must be at most 65535."),
        (["keys", "create", "--tenant", "acme", "--days", "0"], "'--days': This must be at least 1."),
        (["keys", "create", "--tenant", " "], "A tenant's name has 1 to"),
        (["usage", "--since", "x"], "--since: Write a time with its zone"),
    ],
)
def test_a_wrong_option_is_refused_in_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments) == 2
    refused = capsys.readouterr().err
    assert words in refused
    assert not any(leaked in refused for leaked in ("Value error", "Input should", "validation error"))


def test_help_does_not_wait_for_what_commands_need() -> None:
    program = (
        "import sys; from likewise.cli.main import main; main(['--help']); "
        "assert not {'fastapi', 'openvino', 'psycopg', 'tokenizers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_during_an_import_ends_it_quietly(tmp_path: Path) -> None:
    # Given: a module that tells of an interrupt as of a failure to import it, as extension modules do
    (tmp_path / "extended.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    raise ImportError('initialization failed') from None\n"
    )
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from likewise.cli import main; main.COMMANDS += (main.CommandRow('extended', 'extended:command'),); main.run()"
    )
    # When
    done = subprocess.run(
        [sys.executable, "-c", program, "extended"],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    # Then
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
