"""`likewise keys`: a key is shown once, listed by its prefix, and revoked."""

import json
import re

import pytest

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
