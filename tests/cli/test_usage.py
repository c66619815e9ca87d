"""`likewise usage`: what was embedded by model, day, hour or tenant, as a table and in JSON."""

import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from likewise.db import collections
from likewise.db.pool import Pool
from likewise.db.usage import Bookkeeping
from likewise.embedding.costs import Ledger, Usage, UsageAccount
from tests.cli.conftest import Run
from tests.cli.screen import on_a_terminal, plain

MARCH = ("--since", "2026-03-01", "--until", "2026-04-01")
FIRST = datetime(2026, 3, 1, 23, tzinfo=UTC)


@pytest.fixture(scope="module")
async def used(environment: dict[str, str]) -> AsyncIterator[None]:
    """Two tenants' usage of two models, about a midnight."""
    pool = await Pool(environment["LIKEWISE_DATABASE_SERVING_URL"], max_size=1).open()
    try:
        acme, other = [await collections.tenant_named(pool, name) for name in ("acme", "other")]
        ledger, next_hour = Ledger(), FIRST + timedelta(hours=1)
        local = Usage(texts=3, cached=1, generated=2, tokens=2_000)
        ledger.put_back(
            {
                UsageAccount(acme, "minilm-l6-v2", FIRST): local,
                UsageAccount(acme, "text-embedding-3-small", FIRST): Usage(10, 2, 8, 1_000, 5, 40, 0.00002, 0.000004),
                UsageAccount(acme, "text-embedding-3-small", next_hour): Usage(1, 0, 1, 50_000_000, 0, 0, 1.0, 0.0),
                UsageAccount(other, "minilm-l6-v2", next_hour): local,
            }
        )
        await Bookkeeping(pool, ledger).flush()
        yield
    finally:
        await pool.close()


@pytest.mark.usefixtures("used")
def test_by_model_of_all_tenants(likewise_command: Run) -> None:
    # When
    done = likewise_command("usage", *MARCH)
    # Then
    assert done.returncode == 0, done.stderr
    assert "between 2026-03-01 00:00 and 2026-04-01 00:00 UTC" in done.stderr
    head, local, remote, total = [line.split() for line in done.stdout.splitlines()]
    assert head == ["model", "texts", "cached", "tokens", "cut", "off", "cost", "avoided", "cost"]
    assert local == ["minilm-l6-v2", "6", "2", "4,000", "0", "0", "0"]
    assert remote[:-1] == ["text-embedding-3-small", "11", "2", "~50,001,000", "5", "1.00", "0.000004"]
    assert set(remote[-1]) <= {"━", "╸"}
    assert total == ["total", "17", "4", "~50,005,000", "5", "1.00", "0.000004"]
    assert "40 tokens were not counted" in done.stderr


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("hour", ["2026-03-01 23:00", "2026-03-02 00:00"]),
        ("day", ["2026-03-01 00:00", "2026-03-02 00:00"]),
        ("tenant", ["acme", "other"]),
    ],
)
def test_by_other_things(likewise_command: Run, by: str, keys: list[str]) -> None:
    done = likewise_command("usage", *MARCH, "--by", by)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[: len(key)] for line, key in zip(lines[1:], keys, strict=False)] == keys
    assert len(lines) == 4


@pytest.mark.usefixtures("used")
def test_of_one_tenant_in_json(likewise_command: Run) -> None:
    # When
    done = likewise_command("usage", *MARCH, "--tenant", "other", "--json")
    # Then
    sums = {"texts": 3, "cached": 1, "generated": 2, "tokens": 2_000, "truncated": 0, "estimated": 0}
    sums |= {"cost": 0.0, "cost_avoided": 0.0}
    assert json.loads(done.stdout) == {
        "tenant": "other",
        "since": "2026-03-01T00:00:00Z",
        "until": "2026-04-01T00:00:00Z",
        "group_by": "model",
        "usage": [{"model": "minilm-l6-v2"} | sums],
        "total": sums,
    }


@pytest.mark.usefixtures("used")
def test_nothing_is_said_to_be_nothing(likewise_command: Run) -> None:
    told = likewise_command("usage")
    as_json = likewise_command("usage", "--json")
    assert (told.returncode, told.stdout) == (0, "")
    assert "Nothing was embedded between" in told.stderr
    assert json.loads(as_json.stdout)["usage"] == []


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--by", "colour"], 2, "--by"),
        (["--since", "last week"], 2, "--since"),
        (["--until", "2026-03-01T00:00:00"], 2, "--until"),
        (["--since", "2026-03-02", "--until", "2026-03-01"], 2, "before"),
        (["--tenant", "nobody"], 1, "tenants list"),
    ],
)
def test_what_cannot_be_shown_is_said(likewise_command: Run, arguments: list[str], code: int, words: str) -> None:
    done = likewise_command("usage", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_role_that_serves_does_not_see_all(likewise_command: Run) -> None:
    done = likewise_command("usage", LIKEWISE_DATABASE_URL="")
    assert done.returncode == 3
    assert "LIKEWISE_DATABASE_URL" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a terminal of Unix")
@pytest.mark.usefixtures("used")
def test_on_a_narrow_terminal_no_number_is_cut(environment: dict[str, str]) -> None:
    shown = on_a_terminal(environment | {"LINES": "20"}, "usage", *MARCH)
    assert "~50,001,000" in plain(shown)
