"""`likewise cache warm`: texts of a file to a Redis that then knows them, and what it says when that cannot be."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis

from likewise.cli import cache, main
from likewise.embedding.embedder import Embedder
from likewise.settings import Settings
from likewise.testing import DatabaseUrls, FakeProvider
from likewise.testing.redis import RedisProcess
from tests.cli.conftest import Stdin

OK, FAILED, USAGE, NOT_STARTED, PARTLY = range(5)

Warm = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def provider() -> FakeProvider:
    """The model."""
    return FakeProvider(16)


@pytest.fixture
def warm(
    redis: RedisProcess,
    database: DatabaseUrls,
    provider: FakeProvider,
    stdin: Stdin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Warm:
    """Runs the command; answers its exit code, its answer and its errors."""

    def with_fake(settings: Settings, **options: Any) -> Embedder:
        return Embedder(settings, providers={settings.model: lambda spec: provider}, **options)

    monkeypatch.setattr(cache, "Embedder", with_fake)
    monkeypatch.setattr(cache, "require_model_files", lambda *_, **__: None)
    monkeypatch.setattr(cache, "BATCH", 3)
    monkeypatch.chdir(tmp_path)
    given = {
        "DATA_DIR": str(tmp_path),
        "DATABASE_URL": database.owner,
        "DATABASE_SERVING_URL": database.serving,
        "REDIS_URL": redis.url,
    }
    for name, value in given.items():
        monkeypatch.setenv(f"LIKEWISE_{name}", value)

    def run(*arguments: str, input: bytes = b"") -> tuple[int, Any, str]:
        stdin(input)
        code = main.main(["cache", "warm", *arguments, "--json"])
        shown = capfd.readouterr()
        return code, json.loads(shown.out) if shown.out else None, shown.err

    return run


def file_of(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return str(path)


def size(server: RedisProcess) -> int:
    with sync_redis.Redis(port=server.port, protocol=2) as client:
        return int(client.dbsize())  # type: ignore[arg-type]


def test_what_warming_took_is_in_the_usage_of_its_tenant(
    warm: Warm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Given texts that were warmed for a tenant
    assert warm(file_of(tmp_path / "texts.txt", "one two", "three"), "--tenant", "acme")[0] == OK
    # When its usage is asked for
    assert main.main(["usage", "--tenant", "acme", "--json"]) == OK
    total = json.loads(capfd.readouterr().out)["total"]
    # Then it is there
    assert (total["texts"], total["generated"], total["tokens"]) == (2, 2, 4 + 3)


def test_texts_of_a_file_are_known_afterwards(
    warm: Warm, redis: RedisProcess, tmp_path: Path, provider: FakeProvider
) -> None:
    # Given
    path = file_of(tmp_path / "texts.txt", "one", "two", "one", "drei größer", "two", "six")
    # When
    code, first, _ = warm(path)
    again = warm(path)[1]
    # Then
    assert code == OK
    assert (first["lines"], first["known"], first["embedded"], first["not_written"]) == (6, 2, 4, 0)
    assert (again["known"], again["embedded"]) == (6, 0)
    assert sorted(provider.texts) == ["drei größer", "one", "six", "two"]
    assert size(redis) == 4


def test_json_lines_and_standard_input(warm: Warm, tmp_path: Path, provider: FakeProvider) -> None:
    rows = [json.dumps({"id": number, "text": f"text {number}"}) for number in range(5)]
    assert warm(file_of(tmp_path / "texts.jsonl", *rows))[1]["embedded"] == 5
    assert warm("-", input=b"text 0\ntext 7\n")[1]["known"] == 1
    assert warm("-", "--jsonl", input=rows[0].encode())[1]["known"] == 1
    assert warm(file_of(tmp_path / "rows.txt", *rows), "--jsonl")[1]["known"] == 5
    assert set(provider.texts) == {f"text {number}" for number in (0, 1, 2, 3, 4, 7)}


def test_tenants_and_roles_are_apart(warm: Warm) -> None:
    assert warm("-", input=b"one\n")[1]["embedded"] == 1
    assert warm("-", "--tenant", "acme", input=b"one\n")[1]["embedded"] == 1
    assert warm("-", "--queries", input=b"one\n")[1]["embedded"] == 1
    assert warm("-", "--tenant", "acme", input=b"one\n")[1]["known"] == 1


def test_where_the_cache_is_everybodys_no_database_is_needed(warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKEWISE_CACHE_SCOPE", "shared")
    monkeypatch.setenv("LIKEWISE_DATABASE_SERVING_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert warm("-", input=b"one\n")[1]["embedded"] == 1
    assert warm("-", "--tenant", "acme", input=b"one\n")[1]["known"] == 1


def test_refused_lines_are_named_by_number_and_never_by_what_they_say(warm: Warm, tmp_path: Path) -> None:
    # Given
    lines = [b"one", b" ", b"xyzzy \xff", b"x" * 200_001, b"", b"six", b"xyzzy-known"]
    (tmp_path / "texts.txt").write_bytes(b"\n".join(lines))
    # When
    code, done, errors = warm("texts.txt")
    # Then
    assert code == PARTLY
    assert (done["lines"], done["embedded"], done["refused"]) == (7, 3, 4)
    assert [fault.partition(":")[0] for fault in sorted(done["faults"])] == ["line 2", "line 3", "line 4", "line 5"]
    assert "xyzzy" not in errors + json.dumps(done)


def test_json_lines_that_are_none(warm: Warm) -> None:
    rows = [b"{", b"[1]", b'{"text": 5}', b'{"texts": "xyzzy"}', b"", b'{"text": "good"}', b'{"text": ' + b"[" * 40]
    code, done, _ = warm("-", "--jsonl", input=b"\n".join(rows))
    assert (code, done["embedded"], done["refused"]) == (PARTLY, 1, 6)
    assert "xyzzy" not in json.dumps(done)


def test_a_text_that_the_model_cannot_embed_keeps_no_other_back(warm: Warm, provider: FakeProvider) -> None:
    provider.poison = lambda text: text == "poison"
    code, done, _ = warm("-", input=b"one\npoison\ntwo\nfour\n")
    assert (code, done["known"] + done["embedded"], done["refused"]) == (PARTLY, 3, 1)
    assert done["faults"][0].startswith("line 2: ")


@pytest.mark.parametrize(("kind", "why"), [("missing", "no such file"), ("fifo", "is not a regular file")])
def test_a_file_that_cannot_be_read_is_named(warm: Warm, tmp_path: Path, kind: str, why: str) -> None:
    if kind == "fifo":
        os.mkfifo(tmp_path / "texts.txt")
    code, _, errors = warm(str(tmp_path / "texts.txt"))
    assert code == FAILED
    assert f"{tmp_path / 'texts.txt'}: {why}" in errors


def test_nothing_but_refused_lines_is_a_failure(warm: Warm) -> None:
    assert warm("-", input=b"\n\n")[0] == FAILED
    assert warm("-", input=b"")[0] == OK


def test_without_redis_it_says_what_to_set(warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIKEWISE_REDIS_URL")
    code, _, errors = warm("-", input=b"one\n")
    assert code == NOT_STARTED
    assert "Set LIKEWISE_REDIS_URL" in errors


def test_a_redis_that_is_away_is_found_before_anything_is_embedded(
    warm: Warm, monkeypatch: pytest.MonkeyPatch, provider: FakeProvider
) -> None:
    monkeypatch.setenv("LIKEWISE_REDIS_URL", "redis://:xyzzy@127.0.0.1:1/0")
    code, _, errors = warm("-", input=b"one\n")
    assert (code, provider.texts) == (NOT_STARTED, [])
    assert "cannot be reached" in errors
    assert "xyzzy" not in errors


def test_what_did_not_reach_redis_is_counted(warm: Warm, redis: RedisProcess, provider: FakeProvider) -> None:
    # Given: it fills up while the model works
    def fill(text: str) -> bool:
        with sync_redis.Redis(port=redis.port, protocol=2) as client:
            if text in ("four", "make room"):
                client.config_set("maxmemory", "1" if text == "four" else "0")
        return False

    provider.poison = fill
    # When
    try:
        code, done, errors = warm("-", input=b"one\ntwo\nthree\nfour\nfive\nsix\nseven\n")
    finally:
        fill("make room")
    # Then
    assert code == PARTLY
    assert (done["lines"], done["not_written"]) == (6, 3)
    assert "full" in done["stopped"]
    assert "Stopped" in errors


def test_a_model_that_is_away_is_a_reason_not_to_start(warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "Embedder", Embedder)
    monkeypatch.setenv("LIKEWISE_MODEL", "of-my-own")
    assert warm("-", input=b"one\n")[0] == NOT_STARTED


@pytest.mark.parametrize(("argument", "code"), [("nowhere.txt", FAILED), (".", FAILED)])
def test_a_file_that_cannot_be_read(warm: Warm, argument: str, code: int) -> None:
    done, _, errors = warm(argument)
    assert done == code
    assert errors.startswith("likewise: ")
    assert "Traceback" not in errors


def test_a_name_that_is_none_is_wrong_usage(warm: Warm) -> None:
    assert warm("-", "--tenant", " ")[0] == USAGE
