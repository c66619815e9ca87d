"""The list of commands: each is imported when it is called, and apps bring their own."""

import subprocess
import sys

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


def test_help_does_not_wait_for_what_commands_need() -> None:
    program = (
        "import sys; from likewise.cli.main import main; main(['--help']); "
        "assert not {'fastapi', 'openvino', 'psycopg', 'tokenizers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
