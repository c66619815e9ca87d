"""An app brings commands of its own by its row."""

import pytest
import typer

from likewise.apps.app import App
from likewise.cli import main

greetings = typer.Typer(help="Greetings, in English.")


@greetings.command()
def hello(name: str) -> None:
    """Greet somebody."""
    print(f"Hello, {name}.")


@greetings.command()
def goodbye(name: str) -> None:
    """Take leave of somebody."""
    print(f"Goodbye, {name}.")


@pytest.fixture(autouse=True)
def app(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app with a group of commands, and one with a command alone."""
    here = {"greetings": f"{__name__}:greetings", "hello": f"{__name__}:hello"}
    monkeypatch.setattr(main, "APPS", (App("greetings", "tests.cli", commands=here),))


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_they_are_listed_after_those_of_likewise(capsys: pytest.CaptureFixture[str]) -> None:
    listed = shown(capsys, "--help").splitlines()
    assert [line.split(maxsplit=1) for line in listed[-2:]] == [
        ["greetings", "Greetings, in English."],
        ["hello", "Greet somebody."],
    ]


def test_they_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Take leave of somebody." in shown(capsys, "greetings", "--help")
    assert shown(capsys, "greetings", "hello", "Ada") == "Hello, Ada.\n"
    assert shown(capsys, "hello", "Ada") == "Hello, Ada.\n"


def test_those_of_likewise_are_there_beside_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--collection" in shown(capsys, "search", "--help")
