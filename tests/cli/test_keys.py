"""`likewise keys`: a key is shown once, listed by its prefix, and revoked; the text key is changed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from likewise.sealing import new_key
from tests.cli.conftest import Run


def test_a_key_is_made_listed_and_revoked(likewise_command: Run) -> None:
    # Given
    likewise_command("db", "upgrade")
    # When
    made = likewise_command(
        "keys", "create", "--tenant", "acme", "--scopes", "read, admin", "--name", "ci", "--days", "7"
    )
    token = made.stdout.strip()
    prefix = token.split("_")[1]
    listed = likewise_command("keys", "list", "--json")
    revoked = likewise_command("keys", "revoke", prefix)
    again = likewise_command("keys", "revoke", f"lw_{prefix}", "--json")
    after = likewise_command("keys", "list", "--tenant", "acme")
    # Then
    assert made.returncode == revoked.returncode == again.returncode == 0, made.stderr
    assert re.fullmatch(r"lw_[0-9A-Za-z]{10}_[0-9A-Za-z]{43}", token)
    assert "not shown again" in made.stderr
    (row,) = json.loads(listed.stdout)["keys"]
    assert (row["prefix"], row["tenant"], row["name"], row["scopes"]) == (prefix, "acme", "ci", ["admin", "read"])
    assert row["expires_at"] is not None
    assert row["last_used_at"] is row["revoked_at"] is None
    assert "5 more seconds" in revoked.stdout
    assert json.loads(again.stdout)["revoked"] == prefix
    assert prefix in after.stdout
    assert "revoked" in after.stdout
    for shown in (listed, revoked, again, after):
        assert token.rpartition("_")[2] not in shown.stdout + shown.stderr


def test_a_key_in_json_and_a_tenant_without_any(likewise_command: Run) -> None:
    likewise_command("db", "upgrade")
    made = json.loads(likewise_command("keys", "create", "--tenant", "jason", "--json").stdout)
    assert made["key"].startswith(f"lw_{made['prefix']}_")
    assert (made["tenant"], made["scopes"]) == ("jason", ["read", "write"])
    nobody = likewise_command("keys", "list", "--tenant", "nobody")
    assert (nobody.returncode, nobody.stdout) == (0, "")
    assert "keys create" in nobody.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create"], 2, "--tenant"),
        (["create", "--tenant", "acme", "--scopes", "all"], 2, "read, write and admin"),
        (["create", "--tenant", "acme", "--scopes", ","], 2, "read, write and admin"),
        (["create", "--tenant", "acme", "--days", "0"], 2, "--days"),
        (["create", "--tenant", " "], 2, "printable"),
        (["create", "--tenant", "a\nb"], 2, "printable"),
        (["create", "--tenant", "acme", "--name", "x" * 129], 2, "128"),
        (["revoke", "unknown"], 1, "keys list"),
        (["revoke", "'; DROP TABLE api_keys"], 1, "keys list"),
    ],
)
def test_what_cannot_be_done_is_said(likewise_command: Run, arguments: list[str], code: int, words: str) -> None:
    likewise_command("db", "upgrade")
    done = likewise_command("keys", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_role_that_serves_makes_no_keys(likewise_command: Run) -> None:
    likewise_command("db", "upgrade")
    done = likewise_command("keys", "create", "--tenant", "acme", LIKEWISE_DATABASE_URL="")
    assert done.returncode == 3
    assert "LIKEWISE_DATABASE_URL" in done.stderr


# The text key


@pytest.fixture
def data_dir(environment: dict[str, str]) -> Iterator[Path]:
    """The data folder; its text key is the file's first one again when the test is over."""
    folder = Path(environment["LIKEWISE_DATA_DIR"])
    yield folder
    with psycopg.connect(environment["LIKEWISE_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("DELETE FROM likewise.text_key")
    for left in folder.glob("text.key*"):
        left.unlink()


def test_the_text_key_is_changed_and_counted(likewise_command: Run, data_dir: Path) -> None:
    likewise_command("db", "upgrade")
    first = likewise_command("keys", "rotate-text", "--json")
    key = (data_dir / "text.key").read_text()
    second = likewise_command("keys", "rotate-text")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert json.loads(first.stdout) == {
        "sealed": {"texts": 0, "tasks": 0, "collections": 0},
        "lost": {"texts": 0, "tasks": 0, "collections": 0},
        "key": str(data_dir / "text.key"),
    }
    assert "0 texts, 0 tasks, 0 keys of words" in second.stdout
    assert (data_dir / "text.key").read_text() != key
    assert key.strip() not in second.stdout + second.stderr


def test_a_lost_text_key_is_asked_about(likewise_command: Run, data_dir: Path) -> None:
    likewise_command("db", "upgrade")
    likewise_command("keys", "rotate-text")
    (data_dir / "text.key").unlink()
    refused = likewise_command("keys", "rotate-text")
    unasked = likewise_command("keys", "rotate-text", "--lost")
    done = likewise_command("keys", "rotate-text", "--lost", "--yes")
    assert (refused.returncode, unasked.returncode, done.returncode) == (3, 2, 0)
    assert "--lost" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "--yes" in unasked.stderr
    assert (data_dir / "text.key").exists()


def test_a_text_key_of_the_settings_is_changed_for_the_next(likewise_command: Run, data_dir: Path) -> None:
    likewise_command("db", "upgrade")
    first, second = new_key(), new_key()
    assert likewise_command("keys", "rotate-text", LIKEWISE_TEXT_KEY=first).returncode == 3
    done = likewise_command("keys", "rotate-text", LIKEWISE_TEXT_KEY=first, LIKEWISE_TEXT_KEY_NEXT=second)
    assert done.returncode == 0, done.stderr
    assert "Set LIKEWISE_TEXT_KEY to the new key" in done.stderr
    assert not (data_dir / "text.key").exists()
    wrong = likewise_command("keys", "rotate-text", LIKEWISE_TEXT_KEY="hunter2")
    assert wrong.returncode == 3
    assert "hunter2" not in wrong.stderr
