"""`likewise embed`, with a model that needs no weights."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from likewise.cli import embed as command
from likewise.cli import main
from likewise.embedding.embedder import Embedder
from likewise.settings import Settings
from likewise.testing import FakeProvider
from tests.cli.conftest import Stdin

FAILED = 1


@pytest.fixture
def embed(stdin: Stdin, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command over bytes of standard input; answers its exit code, lines and errors."""

    def with_fake(settings: Settings) -> Embedder:
        return Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})

    monkeypatch.setattr(command, "Embedder", with_fake)
    monkeypatch.setattr(command, "require_model_files", lambda *_, **__: None)
    monkeypatch.setattr(command, "BATCH", 3)

    def run(*arguments: str, input: bytes = b"") -> tuple[int, list[str], str]:
        stdin(input)
        code = main.main(["embed", *arguments])
        shown = capfd.readouterr()
        return code, shown.out.splitlines(), shown.err

    return run


def test_each_line_is_a_text(embed: Any) -> None:
    code, lines, errors = embed("-", "--json", input=b"one\r\ntwo\nthree\nfour\nf\xc3\xbcnf")
    vectors = [json.loads(line)["embedding"] for line in lines]
    assert (code, errors) == (0, "")
    assert len(vectors) == 5
    assert vectors[0] == json.loads(embed("one", "--json")[1][0])["embedding"]


def test_a_blank_line_is_named(embed: Any) -> None:
    code, lines, errors = embed("-", input=b"one\ntwo\nthree\nfour\n \n")
    assert (code, len(lines)) == (FAILED, 3)
    assert errors == "likewise: line 5: This text is blank; leave it out.\n"


def test_several_blank_lines_are_named(embed: Any) -> None:
    _, _, errors = embed("-", input=b"\none\n\n")
    assert errors.splitlines() == [
        "likewise: 2 lines cannot be embedded.",
        "  line 1: This text is blank; leave it out.",
        "  line 3: This text is blank; leave it out.",
    ]


def test_a_blank_argument_is_named(embed: Any) -> None:
    assert embed("one", "")[2] == "likewise: text 2: This text is blank; leave it out.\n"


def test_a_line_that_is_not_utf_8_is_named_with_the_mend(embed: Any) -> None:
    code, _, errors = embed("-", input=b"one\ncaf\xe9\n")
    assert code == FAILED
    assert errors == "likewise: Line 2 of standard input is not UTF-8; convert it first, as iconv does.\n"


def test_a_text_that_is_cut_is_named(embed: Any) -> None:
    code, lines, errors = embed("short", "word " * 1_000)
    assert (code, len(lines)) == (0, 2)
    assert errors.startswith("text 2: ")
    assert errors.endswith(" tokens were cut off.\n")


def test_no_lines_are_no_vectors(embed: Any) -> None:
    assert embed("-") == (0, [], "")


def test_debugging_shows_places_and_no_messages(embed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise ValueError("xyzzy-secret")

    monkeypatch.setenv("LIKEWISE_LOG_LEVEL", "debug")
    monkeypatch.setattr(command, "_print_vectors", breaks)
    code, _, errors = embed("one")
    assert code == FAILED
    assert '"error": "ValueError"' in errors
    assert "embed.py" in errors
    assert "xyzzy" not in errors
