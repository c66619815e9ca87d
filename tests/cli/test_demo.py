"""`likewise demo`: this machine's Python documentation as records, and suggestions that can be typed as they are."""

import sys
from pathlib import Path

import pytest

from likewise.apps.collections.schemas import RecordIn
from likewise.cli import demo
from likewise.cli.demo import standard_library


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of the name in a folder that is not on the PATH."""
    made = tmp_path / "with space" / "likewise"
    made.parent.mkdir()
    made.write_text("#!/bin/sh\n", "utf-8")
    made.chmod(0o755)
    return made


@pytest.mark.parametrize(("on_path", "shown"), [(True, "  likewise search"), (False, "with space/likewise' search")])
def test_the_program_is_named_as_it_can_be_started(
    program: Path, on_path: bool, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(program.parent) if on_path else "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    demo.suggest("127.0.0.1", 8080, quiet=False)
    assert shown in capsys.readouterr().out


def test_a_module_is_named_with_its_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/likewise/__main__.py", "demo"])
    demo.suggest("127.0.0.1", 8080, quiet=False)
    assert f"{sys.executable} -m likewise search" in capsys.readouterr().out


def test_there_are_thousands_each_once_and_known_by_name() -> None:
    # When
    records = {record.id: record for record in standard_library()}
    # Then
    assert len(records) >= 5_000
    assert {
        "subprocess.run",
        "list.append",
        "len",
        "json.loads",
        "os.listdir",
        "math.sqrt",
        "pathlib.Path.exists",
    } <= set(records)
    assert (records["subprocess.run"].text or "").startswith("subprocess.run(")
    assert records["subprocess.run"].payload == {"module": "subprocess", "what": "function"}


def test_each_can_be_stored() -> None:
    for record in standard_library():
        RecordIn(id=record.id, text=record.text or "", payload=dict(record.payload), parent=record.parent)
