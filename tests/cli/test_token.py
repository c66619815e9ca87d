"""`likewise token` and `likewise tenants`: a token for development, and the tenants that may have one."""

import base64
import json
import time

import pytest
from joserfc.jwk import ECKey

from tests.cli.conftest import Run

SECRET = "a secret of the tests, of more than 32 bytes"
PUBLIC_KEY = ECKey.generate_key("P-256").as_pem(private=False).decode()
DEV = {"LIKEWISE_AUTH": "dev", "LIKEWISE_DEV_JWT_SECRET": SECRET}


def claims_of(token: str) -> dict[str, object]:
    part = token.split(".")[1]
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def test_a_token_is_on_stdout_alone(likewise_command: Run) -> None:
    made = likewise_command("token", "--tenant", "acme", **DEV)
    claims = claims_of(made.stdout)
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("\n") == 1
    assert (claims["org_id"], claims["scope"]) == ("acme", "read write")
    assert time.time() < float(str(claims["exp"])) <= time.time() + 3_600
    assert "in 1h" in made.stderr
    assert made.stdout.strip() not in made.stderr


def test_what_a_token_says_is_chosen(likewise_command: Run) -> None:
    choice = ("token", "--tenant", "acme", "--scope", "admin,read", "--json")
    never = json.loads(likewise_command(*choice, "--expires", "never", **DEV).stdout)
    short = json.loads(likewise_command(*choice, "--expires", "90s", **DEV, LIKEWISE_JWT_TENANT_CLAIM="a.b").stdout)
    assert (never["tenant"], never["scopes"], never["expires_in"]) == ("acme", ["admin", "read"], None)
    assert "exp" not in claims_of(never["token"])
    assert (short["expires_in"], claims_of(short["token"])["a.b"]) == (90, "acme")


def test_a_token_that_nobody_here_takes_is_told_of(likewise_command: Run) -> None:
    made = likewise_command("token", "--tenant", "acme", LIKEWISE_DEV_JWT_SECRET=SECRET)
    assert made.returncode == 0
    assert "LIKEWISE_AUTH does not name `dev`" in made.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "words"),
    [
        ([], DEV, 2, "--tenant"),
        (["--tenant", " "], DEV, 2, "printable"),
        (["--tenant", "a\nb"], DEV, 2, "printable"),
        (["--tenant", "a", "--scopes", "all"], DEV, 2, "read, write and admin"),
        (["--tenant", "a", "--expires", "soon"], DEV, 2, "1h"),
        (["--tenant", "a", "--expires", "0h"], DEV, 2, "1h"),
        (["--tenant", "a", "--expires", "99999d"], DEV, 2, "3650d"),
        (["--tenant", "a"], {}, 3, "LIKEWISE_DEV_JWT_SECRET"),
        (["--tenant", "a"], {"LIKEWISE_DEV_JWT_SECRET": "short"}, 3, "32 bytes"),
        (["--tenant", "a"], {"LIKEWISE_DEV_JWT_SECRET": PUBLIC_KEY}, 3, "public key"),
    ],
)
def test_what_cannot_be_done_is_said(
    likewise_command: Run, arguments: list[str], variables: dict[str, str], code: int, words: str
) -> None:
    done = likewise_command("token", *arguments, **variables)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "short" not in done.stderr


def test_tenants_are_declared_and_listed(likewise_command: Run) -> None:
    likewise_command("db", "upgrade")
    nobody = likewise_command("tenants", "list")
    added = likewise_command("tenants", "add", "Söhne & Co")
    again = likewise_command("tenants", "add", "Söhne & Co", "--json")
    likewise_command("keys", "create", "--tenant", "acme")
    listed = likewise_command("tenants", "list")
    as_json = json.loads(likewise_command("tenants", "list", "--json").stdout)
    assert (nobody.returncode, nobody.stdout) == (0, "")
    assert added.stdout == "Söhne & Co is declared.\n"
    assert json.loads(again.stdout) == {"tenant": "Söhne & Co", "new": False}
    assert {line.split("  ")[0] for line in listed.stdout.splitlines()} == {"acme", "Söhne & Co"}
    assert {one["name"]: one["collections"] for one in as_json["tenants"]} == {"acme": 0, "Söhne & Co": 0}


@pytest.mark.parametrize("name", [" ", "a\nb", "a" * 513, "\x1b[31m"])
def test_what_is_no_name_is_refused(likewise_command: Run, name: str) -> None:
    done = likewise_command("tenants", "add", name)
    assert (done.returncode, "printable" in done.stderr) == (2, True)


def test_the_role_that_serves_declares_nobody(likewise_command: Run) -> None:
    likewise_command("db", "upgrade")
    done = likewise_command("tenants", "add", "acme", LIKEWISE_DATABASE_URL="")
    assert done.returncode == 3
    assert "LIKEWISE_DATABASE_URL" in done.stderr
