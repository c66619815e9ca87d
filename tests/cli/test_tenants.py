"""Tenants by name: one rule for what they may be called, and one answer where there is none."""

import json

import pytest

from tests.cli.conftest import Run

# What a JWT may call a tenant: longer than a key's name may be, and with a space that nothing prints.
LONG = "acme\u00a0" + "x" * 507


def test_what_a_token_may_call_a_tenant_may_have_keys(likewise_command: Run) -> None:
    # Given
    likewise_command("db", "upgrade")
    likewise_command("tenants", "add", LONG)
    # When
    made = likewise_command("keys", "create", "--tenant", LONG, "--json")
    # Then it is the same tenant
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["tenant"] == LONG
    listed = json.loads(likewise_command("tenants", "list", "--json").stdout)["tenants"]
    assert [one["name"] for one in listed].count(LONG) == 1


@pytest.mark.parametrize(
    "verb",
    [
        ("keys", "create", "--tenant"),
        ("tenants", "add"),
        ("token", "--tenant"),
        ("cache", "warm", "nothing.txt", "--tenant"),
    ],
)
@pytest.mark.parametrize("name", [LONG + "x", "a\nb"])
def test_what_no_tenant_may_be_called_is_refused_alike(likewise_command: Run, verb: tuple[str, ...], name: str) -> None:
    done = likewise_command(*verb, name)
    assert done.returncode == 2
    assert "1 to 512" in done.stderr


@pytest.mark.parametrize("verb", [("jobs", "list"), ("usage",)])
def test_where_there_is_no_such_tenant_the_mend_shows_all_of_them(likewise_command: Run, verb: tuple[str, ...]) -> None:
    likewise_command("db", "upgrade")
    done = likewise_command(*verb, "--tenant", "nobody")
    assert done.returncode == 1
    assert "likewise tenants list" in done.stderr
