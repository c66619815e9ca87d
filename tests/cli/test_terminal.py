"""How far work is: a bar with rate and time left on a terminal, plain lines elsewhere, nothing where one wants JSON."""

import re
import time
from pathlib import Path

import psycopg
import pytest

from likewise import progress
from likewise.cli.files import count_files, sources
from likewise.testing import ThrowawayPostgres
from tests.cli.conftest import Run
from tests.cli.screen import on_a_terminal, plain

BAR = re.compile(r"\d+/\d+ \d+/s \d+:\d\d:\d\d")


@pytest.fixture
def many_files(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    for number in range(700):
        (folder / str(number % 7)).mkdir(parents=True, exist_ok=True)
        (folder / str(number % 7) / f"{number}.txt").write_text(f"note {number}")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "picture.png").write_text("no text")
    return folder


def test_reading_files_shows_how_many_are_left(environment: dict[str, str], many_files: Path) -> None:
    shown = plain(on_a_terminal(environment, "index", str(many_files), "-c", "with-bars"))
    reading = [line for line in re.split(r"[\r\n]+", shown) if "Reading" in line]
    assert any("/700" in line and BAR.search(line) for line in reading)


def test_files_are_counted_as_they_are_read(many_files: Path) -> None:
    assert count_files(many_files) == len(list(sources(many_files))) == 700
    assert count_files(many_files / "0" / "0.txt") == 1


def test_an_upgrade_shows_its_steps(environment: dict[str, str], postgres: ThrowawayPostgres, tmp_path: Path) -> None:
    # Given: a database with nothing in it
    with psycopg.connect(postgres.server.superuser_url(), autocommit=True) as superuser:
        superuser.execute("CREATE DATABASE to_upgrade TEMPLATE template0 OWNER likewise_owner")
    empty = environment | {
        "LIKEWISE_DATABASE_URL": postgres.server.url("likewise_owner", "to_upgrade"),
        "LIKEWISE_DATABASE_SERVING_URL": postgres.server.url("likewise_server", "to_upgrade"),
    }
    try:
        with psycopg.connect(postgres.server.superuser_url("to_upgrade"), autocommit=True) as superuser:
            superuser.execute("CREATE EXTENSION vector")
        # When
        first, second = (plain(on_a_terminal(empty, "db", "upgrade")) for _ in range(2))
    finally:
        with psycopg.connect(postgres.server.superuser_url(), autocommit=True) as superuser:
            superuser.execute("DROP DATABASE to_upgrade WITH (FORCE)")
    # Then
    assert BAR.search(first)
    assert "Upgrading" not in second
    assert "up to date" in second


def test_without_a_terminal_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.progress("Reading") as report:
        time.sleep(0.01)
        report(5, 10)
        report(6, None)
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"Reading: 5 of 10, \d+/s, 0:00:00 left", first)
    assert re.fullmatch(r"Reading: 6, \d+/s", second)


def test_where_one_wants_json_there_is_none(likewise_command: Run, many_files: Path) -> None:
    done = likewise_command("index", str(many_files), "-c", "as-json", "--json")
    assert "Reading" not in done.stderr
    assert len(done.stdout.splitlines()) == 1
