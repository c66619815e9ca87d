"""The doctor names each fault with its mend: every fault here is a real one."""

import asyncio
import io
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL

from likewise.cli.doctor import database as database_checks
from likewise.cli.doctor import machine as machine_checks
from likewise.cli.doctor.doctor import findings
from likewise.cli.doctor.finding import Finding
from likewise.db import checkup
from likewise.postgres.filelock import open_lock
from likewise.postgres.postmaster import postgres_processes
from likewise.postgres.server import EmbeddedServer
from likewise.sealing import new_key
from likewise.settings import Settings, load_settings
from likewise.testing import DatabaseUrls, FakeIssuer, ScriptedReply, ThrowawayPostgres, Upstream, open_folder
from likewise.testing.redis import RedisProcess
from tests.conftest import Opener
from tests.embedding.tiny import CONFIG, weights, write_folder
from tests.patience import PATIENCE
from tests.search.rerankers import BERT

Examine = Callable[..., Awaitable[dict[str, Finding]]]


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """The folder of a very small model."""
    return write_folder(tmp_path / "models" / "tiny", weights())


@pytest.fixture
def settings(database: DatabaseUrls, tmp_path: Path) -> Settings:
    """Those of a Likewise that shares the doctor's data folder."""
    return load_settings(data_dir=tmp_path, database_url=database.owner, database_serving_url=database.serving)


@pytest.fixture
def examine(database: DatabaseUrls, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """What the doctor finds by part; on a machine where nothing is wrong but what a variable says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdout", printing_in("utf-8"))
    for name in [name for name in os.environ if name.startswith("LIKEWISE_")]:
        monkeypatch.delenv(name)

    async def look(**variables: str) -> dict[str, Finding]:
        given = {
            "DATA_DIR": str(tmp_path),
            "MODEL": "tiny",
            "OFFLINE": "true",
            "DATABASE_URL": database.owner,
            "DATABASE_SERVING_URL": database.serving,
            **variables,
        }
        for name, value in given.items():
            monkeypatch.setenv(f"LIKEWISE_{name}", value)
        return {finding.part: finding async for finding in findings()}

    return look


def printing_in(encoding: str) -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def faults(found: dict[str, Finding]) -> dict[str, str]:
    return {part: f"{one.what} | {one.mend}" for part, one in found.items() if one.mend is not None}


def only(found: dict[str, Finding], part: str) -> str:
    """The words of the one fault."""
    assert list(faults(found)) == [part]
    return faults(found)[part]


@pytest.fixture
def as_superuser(postgres: ThrowawayPostgres, database: DatabaseUrls) -> Callable[..., Awaitable[None]]:
    """Runs statements in the test's database that nobody else may."""
    url = make_conninfo(postgres.server.superuser_url(), dbname=str(conninfo_to_dict(database.owner)["dbname"]))

    async def run(*statements: Any) -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            for statement in statements:
                await connection.execute(SQL(statement))

    return run


async def test_where_nothing_is_wrong_it_says_so_of_every_part(examine: Examine) -> None:
    found = await examine()
    assert faults(found) == {}
    assert set(found) == {
        "python", "locale", "processor", "clock", "settings", "data folder", "disk", "model", "database",
        "locale of the database", "connections", "clock of the database", "roles", "text key", "index", "waiting",
        "failed texts",
    }  # fmt: skip
    assert "f32" in found["model"].what or "bf16" in found["model"].what


# This machine


async def test_a_terminal_without_utf8(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", printing_in("latin-1"))
    assert "C.UTF-8" in only(await examine(), "locale")


def test_a_clock_before_anything_was_installed() -> None:
    finding = machine_checks.clock(lambda: 0.0)
    assert "1970-01-01" in finding.what
    assert "NTP" in (finding.mend or "").upper()


async def test_a_disk_that_is_full(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "MIN_FREE_BYTES", 2**60)
    assert "LIKEWISE_DATA_DIR" in only(await examine(), "disk")


async def test_a_data_folder_that_is_a_file(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = await examine(DATA_DIR=str(tmp_path / "file"), MODELS_DIR=str(tmp_path / "models"))
    assert "LIKEWISE_DATA_DIR" in faults(found)["data folder"]


# Redis


async def test_a_redis_that_is_well(examine: Examine, redis: RedisProcess) -> None:
    found = await examine(REDIS_URL=redis.url)
    assert faults(found) == {}
    assert found["cache"].what == "Redis answers, and takes vectors"
    assert await redis.execute("DBSIZE") == 0


async def test_a_redis_that_is_away(examine: Examine) -> None:
    words = only(await examine(REDIS_URL="redis://:xyzzy-secret@127.0.0.1:1/0"), "cache")
    assert "cannot be reached" in words
    assert "LIKEWISE_REDIS_URL" in words
    assert "xyzzy" not in words


async def test_a_redis_that_is_full(examine: Examine, redis_program: str) -> None:
    async with RedisProcess(["--maxmemory", "1"]).running() as server:
        assert "is full" in only(await examine(REDIS_URL=server.url), "cache")


async def test_a_redis_of_an_unreadable_url(examine: Examine) -> None:
    words = only(await examine(REDIS_URL="localhost:6379/xyzzy-secret"), "cache")
    assert "redis://user:password@host:6379/0" in words
    assert "xyzzy" not in words


# The issuer of tokens


async def test_an_issuer(examine: Examine) -> None:
    async with FakeIssuer().running() as server:
        jwks = {"AUTH": "jwks", "JWKS_URL": server.url, "JWT_AUDIENCE": "likewise", "JWT_ISSUER": "https://issuer"}
        well = await examine(**jwks)
        server.published = []
        empty = only(await examine(**jwks), "issuer")
        server.next.append(ScriptedReply(body=b"<html>"))
        rubbish = only(await examine(**jwks), "issuer")
    away = only(await examine(**jwks), "issuer")
    assert faults(well) == {}
    assert well["issuer"].what == "It publishes 2 keys for signatures"
    assert "RS256 or ES256" in empty
    assert "no set of keys" in rubbish
    assert "LIKEWISE_JWKS_URL" in away


# Settings and models


async def test_a_setting_that_is_none(examine: Examine) -> None:
    assert "LIKEWISE_PROT" in only(await examine(PROT="1"), "settings")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bge-smal", "is bge-small meant?"),
        ("all-MiniLM-L6-v3", "is minilm-l6-v2 meant?"),
        ("of-my-own", "nor a folder"),
        ("text-embedding-ada-002", "Set LIKEWISE_OPENAI_API_KEY in the environment"),
        ("bge-small", "models pull bge-small"),
    ],
)
async def test_an_allowed_model_that_cannot_be_had(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, words: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert words in only(await examine(MODELS_ALLOWED=name), "models allowed")


async def test_a_default_model_with_a_slip_of_the_pen(examine: Examine) -> None:
    assert "is bge-small meant?" in only(await examine(MODEL="bge_small"), "model")


@pytest.mark.parametrize(
    ("variables", "part", "mend"),
    [
        ({"DEVICE": "cuda"}, "model", "Install that extra, or unset LIKEWISE_DEVICE."),
        ({"MODEL": "roberta"}, "model", "Install that extra, or set LIKEWISE_MODEL to another model."),
        ({"MODELS_ALLOWED": "roberta"}, "models allowed", "Install that extra, or leave roberta out."),
    ],
)
async def test_a_model_that_only_torch_could_run_where_it_is_missing(
    examine: Examine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    part: str,
    mend: str,
) -> None:
    # Given
    monkeypatch.setattr("likewise.embedding.runtimes.torch_installed", lambda: False)
    write_folder(tmp_path / "models" / "roberta", weights(), config=CONFIG | {"model_type": "roberta"})
    # When
    found = (await examine(**variables))[part]
    # Then the setting that it follows from is named, and no other
    assert "pip install 'likewise[torch]'" in found.what
    assert found.mend == mend
    assert ("LIKEWISE_MODEL" in f"{found.what} {mend}") == ("DEVICE" not in variables)


async def test_weights_that_are_gone(examine: Examine, tiny_model: Path) -> None:
    (tiny_model / "model.safetensors").unlink()
    assert str(tiny_model) in only(await examine(), "model")


@pytest.mark.parametrize("role", ["default", "allowed"])
async def test_weights_that_have_changed(examine: Examine, tiny_model: Path, role: str) -> None:
    # Given: weights that were seen, and then others in their place
    other = shutil.copytree(tiny_model, tiny_model.parent / "other")
    assert faults(await examine(MODELS_ALLOWED="other")) == {}
    changed = tiny_model if role == "default" else other
    with (changed / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x3f")
    # Then
    words = only(await examine(MODELS_ALLOWED="other"), "model" if role == "default" else "models allowed")
    assert "SHA-256" in words
    assert "Remove that file" in words


async def test_weights_that_are_no_weights(examine: Examine, tiny_model: Path) -> None:
    (tiny_model / "model.safetensors").write_bytes(b"not at all")
    assert "model" in faults(await examine())


# Remote models


def models_file(path: Path, url: str, dimension: int = 16) -> str:
    """A file with one remote model, `far`."""
    file = path / "models.toml"
    file.write_text(f"""
        [[model]]
        name = "far"
        base_url = "{url}"
        key_variable = "FAR_KEY"
        dimension = {dimension}
    """)
    return str(file)


@pytest.mark.parametrize(
    ("dimension", "key", "status", "words"),
    [
        (16, "", 200, "Set FAR_KEY in the environment"),
        (16, "canary", 401, "Set FAR_KEY to a key that its provider takes"),
        (16, "canary", 404, "Fix the address or the model's name there: its row in LIKEWISE_MODELS_FILE"),
        (16, "canary", 503, "fails (503)"),
        (16, "canary", 400, "refuses the request (400)"),
        (8, "canary", 200, "answers with 16 numbers a vector and not with 8"),
    ],
)
async def test_a_remote_model_that_does_not_work(
    examine: Examine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    dimension: int,
    key: str,
    status: int,
    words: str,
) -> None:
    monkeypatch.setenv("FAR_KEY", key)
    async with Upstream(16).running() as upstream:
        upstream.always = None if status == 200 else ScriptedReply(status)
        found = only(await examine(MODELS_FILE=models_file(tmp_path, upstream.url, dimension)), "models allowed")
        assert len(upstream.asked) <= 2
    assert words in found
    assert "canary" not in found


async def test_a_reranker_that_works(examine: Examine) -> None:
    found = await examine(RERANKER=str(BERT), PRECISION="f32")
    assert faults(found) == {}
    assert f"{BERT} works" in found["reranker"].what


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ms-marco-MiniLM-L-6-v2", "likewise models pull ms-marco-MiniLM-L-6-v2"),
        ("tiny", "no cross-encoder"),
        ("ms-marco-MiniLM-L6-v2", r"nor a folder .*is ms-marco-MiniLM-L-6-v2 meant\?.*Set LIKEWISE_RERANKER"),
    ],
)
async def test_a_reranker_that_does_not_work(examine: Examine, name: str, words: str) -> None:
    assert re.search(words, only(await examine(RERANKER=name), "reranker"))


async def test_a_remote_model_that_works(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAR_KEY", "canary")
    async with Upstream(16).running() as upstream:
        found = await examine(MODELS_FILE=models_file(tmp_path, upstream.url), MODEL="far")
    assert faults(found) == {}
    assert "far works" in found["model"].what


async def test_a_remote_model_whose_address_does_not_answer(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAR_KEY", "canary")
    found = only(await examine(MODELS_FILE=models_file(tmp_path, "http://127.0.0.1:9/v1")), "models allowed")
    assert "http://127.0.0.1:9/v1 does not answer" in found
    assert "can be reached from here" in found


async def test_a_models_file_that_is_wrong(examine: Examine, tmp_path: Path) -> None:
    assert "model.0.dimension" in only(await examine(MODELS_FILE=models_file(tmp_path, "http://a", -1)), "models file")


# The server


async def test_nothing_listens(examine: Examine) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql://me:hidden@127.0.0.1:{free.getsockname()[1]}/x"
        words = only(await examine(DATABASE_URL=url, DATABASE_SERVING_URL=""), "database")
    assert "LIKEWISE_DATABASE_URL" in words
    assert "hidden" not in words


async def test_a_server_that_says_nothing(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given: what takes connections and never answers
    monkeypatch.setattr(checkup, "CONNECT_SECONDS", 2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"postgresql://me:hidden@127.0.0.1:{mute.getsockname()[1]}/x"
        # Then: it is said, soon
        words = only(await examine(DATABASE_URL=url, DATABASE_SERVING_URL=url), "database")
    assert "nothing answers" in words


@pytest.mark.parametrize(
    ("change", "words"),
    [({"user": "nobody_at_all"}, "LIKEWISE_DATABASE_URL"), ({"dbname": "not_there"}, "no such database")],
)
async def test_a_url_that_leads_to_nothing(
    examine: Examine, database: DatabaseUrls, change: dict[str, str], words: str
) -> None:
    assert words in only(await examine(DATABASE_URL=make_conninfo(database.owner, **change)), "database")


async def test_a_url_that_is_none(examine: Examine) -> None:
    words = only(await examine(DATABASE_URL="postgresql://me:hid den@[::1/x"), "database")
    assert "LIKEWISE_DATABASE_URL" in words
    assert "hid" not in words.replace("which", "")


async def test_no_role_to_serve_as(examine: Examine) -> None:
    assert "db upgrade" in only(await examine(DATABASE_SERVING_URL=""), "database")


# Roles


async def test_a_serving_role_that_is_a_superuser(
    examine: Examine, postgres: ThrowawayPostgres, database: DatabaseUrls
) -> None:
    name = str(conninfo_to_dict(database.owner)["dbname"])
    powerful = make_conninfo(postgres.server.superuser_url(), dbname=name)
    words = only(await examine(DATABASE_SERVING_URL=powerful), "roles")
    assert "superuser" in words
    assert "LIKEWISE_DATABASE_SERVING_URL" in words


async def test_a_serving_role_that_is_the_owner(examine: Examine, database: DatabaseUrls) -> None:
    assert "may create" in only(await examine(DATABASE_SERVING_URL=database.owner), "roles")


@pytest.mark.parametrize(
    ("change", "back", "words"),
    [
        (
            "ALTER ROLE likewise_server BYPASSRLS",
            "ALTER ROLE likewise_server NOBYPASSRLS",
            "bypasses row-level security",
        ),
        ("ALTER ROLE likewise_server NOLOGIN", "ALTER ROLE likewise_server LOGIN", "may not log in"),
        (
            "GRANT CREATE ON SCHEMA likewise TO likewise_server",
            "REVOKE CREATE ON SCHEMA likewise FROM likewise_server",
            "REVOKE CREATE ON SCHEMA",
        ),
    ],
    ids=["bypasses", "no login", "creates"],
)
async def test_a_serving_role_that_may_too_much_or_too_little(
    examine: Examine, as_superuser: Any, change: str, back: str, words: str
) -> None:
    await as_superuser(change)
    try:
        found = await examine()
    finally:
        await as_superuser(back)
    assert words in only(found, "roles")


async def test_a_serving_role_that_may_not_use_the_schema(examine: Examine, as_superuser: Any) -> None:
    await as_superuser("REVOKE USAGE ON SCHEMA likewise FROM likewise_server")
    assert "database" in faults(await examine())


# Versions, schema, locale, connections, clock


async def test_an_old_pgvector(examine: Examine, as_superuser: Any) -> None:
    await as_superuser("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    words = only(await examine(), "database")
    assert "pgvector 0.7.4" in words
    assert "ALTER EXTENSION vector UPDATE" in words


async def test_a_schema_that_is_behind(examine: Examine, as_superuser: Any) -> None:
    await as_superuser("DELETE FROM likewise.schema_migrations")
    assert "db upgrade" in only(await examine(), "database")


async def test_a_schema_that_is_ahead(examine: Examine, as_superuser: Any) -> None:
    await as_superuser("INSERT INTO likewise.schema_migrations VALUES (9999, 'of_the_future', '')")
    assert "newer Likewise" in only(await examine(), "database")


async def test_a_collation_of_another_version(examine: Examine, as_superuser: Any, database: DatabaseUrls) -> None:
    await as_superuser("UPDATE pg_database SET datcollversion = '0.1' WHERE datname = current_database()")
    words = only(await examine(), "locale of the database")
    assert "REFRESH COLLATION VERSION" in words


async def test_a_database_that_takes_no_writes(examine: Examine, as_superuser: Any) -> None:
    await as_superuser("ALTER ROLE likewise_owner SET default_transaction_read_only = on")
    try:
        found = await examine()
    finally:
        await as_superuser("ALTER ROLE likewise_owner RESET default_transaction_read_only")
    assert "read-only" in only(found, "locale of the database")


async def test_more_connections_than_there_are(examine: Examine) -> None:
    words = only(await examine(DATABASE_CONNECTIONS="200"), "connections")
    assert "LIKEWISE_DATABASE_CONNECTIONS" in words


async def test_a_role_with_few_connections(examine: Examine, as_superuser: Any) -> None:
    await as_superuser("ALTER ROLE likewise_server CONNECTION LIMIT 9")
    try:
        found = await examine()
    finally:
        await as_superuser("ALTER ROLE likewise_server CONNECTION LIMIT -1")
    assert "to 5 or less" in only(found, "connections")


@pytest.mark.parametrize(("ahead", "words"), [(60.0, "60 s behind"), (-60.0, "60 s ahead of"), (1.0, "agrees")])
async def test_a_clock_that_is_not_the_databases(
    examine: Examine, database: DatabaseUrls, ahead: float, words: str
) -> None:
    settings = load_settings(database_url=database.owner, database_serving_url=database.serving)
    found = {one.part: one async for one in database_checks.database(settings, lambda: time.time() + ahead)}
    clock = found["clock of the database"]
    assert words in clock.what
    assert (clock.mend is None) == (abs(ahead) < 2)


# The index


FILL = """
    INSERT INTO likewise.vec_1 (content, embedding, tokens, truncated, chars_read)
    SELECT n, array_fill(0.05, ARRAY[384])::likewise.halfvec, 1, 0, 1 FROM generate_series(1, 21000) n
"""
INDEX = "CREATE INDEX vec_1_embedding ON likewise.vec_1 USING hnsw (embedding likewise.halfvec_cosine_ops)"
SPOIL = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'likewise.vec_1_embedding'::regclass"
LOCK = "SELECT pg_advisory_lock(7721, 1)"


@asynccontextmanager
async def with_a_key(open_likewise: Opener) -> AsyncIterator[None]:
    """A Likewise with a text that waits sealed."""
    async with open_likewise(worker=False) as lw:
        await lw.segments.embed(await lw.tenant(), "asset", "segment", "a text")
        yield


async def test_a_text_key_that_is_well(open_likewise: Opener, examine: Examine) -> None:
    assert "none as yet" in (await examine())["text key"].what
    async with with_a_key(open_likewise):
        found = await examine()
    assert faults(found) == {}
    assert "text.key" in found["text key"].what


@pytest.mark.parametrize(
    ("mode", "written", "words"),
    [
        (0o644, None, "chmod 600"),
        (0o600, "", "holds no key"),
        (0o600, "A" * 43 + "=", "another key"),
        (None, None, "not there"),
    ],
)
async def test_a_text_key_that_is_not_as_it_should_be(
    open_likewise: Opener, examine: Examine, settings: Settings, mode: int | None, written: str | None, words: str
) -> None:
    async with with_a_key(open_likewise):
        pass
    file = settings.data_dir / "text.key"
    if mode is None:
        file.unlink()
    else:
        file.chmod(mode)
    if written is not None:
        file.write_text(written)
    assert words in only(await examine(), "text key")


async def test_a_text_key_of_the_settings(examine: Examine, open_likewise: Opener, settings: Settings) -> None:
    async with with_a_key(open_likewise):
        pass
    key = (settings.data_dir / "text.key").read_text().strip()
    assert faults(await examine(TEXT_KEY=key)) == {}
    assert "unset LIKEWISE_TEXT_KEY_NEXT" in only(await examine(TEXT_KEY=new_key(), TEXT_KEY_NEXT=key), "text key")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((FILL,), "21000 vectors and no index"),
        ((INDEX, SPOIL), "not valid"),
        (("UPDATE likewise.generations SET index_state = 'building'",), "nobody builds"),
        (("UPDATE likewise.generations SET index_state = 'ready'",), "has no index"),
    ],
    ids=["large", "invalid", "abandoned", "lost"],
)
async def test_an_index_that_is_not_what_it_should_be(
    open_likewise: Opener, examine: Examine, as_superuser: Any, given: tuple[str, ...], words: str
) -> None:
    # Given
    async with open_likewise(worker=False) as lw:
        await lw.collection("notes").create()
    await as_superuser(*given)
    # Then
    found = only(await examine(), "index")
    assert words in found
    assert "likewise serve" in found


async def test_an_index_that_somebody_builds_is_no_fault(
    open_likewise: Opener, examine: Examine, as_superuser: Any, database: DatabaseUrls
) -> None:
    async with open_likewise(worker=False) as lw:
        await lw.collection("notes").create()
    await as_superuser("UPDATE likewise.generations SET index_state = 'building'")
    async with await psycopg.AsyncConnection.connect(database.owner, autocommit=True) as builder:
        await builder.execute(SQL(LOCK))
        found = await examine()
    assert faults(found) == {}
    assert "1 being indexed" in found["index"].what


async def test_an_invalid_index_is_seen_without_the_owner(
    open_likewise: Opener, examine: Examine, as_superuser: Any
) -> None:
    async with open_likewise(worker=False) as lw:
        await lw.collection("notes").create()
    await as_superuser(
        INDEX, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'likewise.vec_1_embedding'::regclass"
    )
    assert "LIKEWISE_DATABASE_URL" in only(await examine(DATABASE_URL=""), "index")


# What waits, and what has failed


@asynccontextmanager
async def one_waits(open_likewise: Opener, as_superuser: Any, minutes: int = 10) -> AsyncIterator[None]:
    """A Likewise that embeds nothing, with a text that waits for the model `tiny`."""
    async with open_likewise(worker=False) as lw:
        await lw.collection("notes").add([{"id": "1", "text": "one"}], wait=False)
        await as_superuser(
            f"UPDATE likewise.waiting SET entered_at = now() - interval '{minutes} minutes'",
            "UPDATE likewise.generations SET model = 'tiny'",
        )
        yield


async def test_what_waits_too_long_while_nobody_works(
    open_likewise: Opener, examine: Examine, as_superuser: Any
) -> None:
    async with one_waits(open_likewise, as_superuser):
        pass
    words = only(await examine(), "waiting")
    assert "no worker runs" in words
    assert "likewise worker" in words


async def test_what_waits_too_long_beside_a_server(open_likewise: Opener, examine: Examine, as_superuser: Any) -> None:
    async with one_waits(open_likewise, as_superuser):
        words = only(await examine(), "waiting")
    assert "does not embed it" in words
    assert "LIKEWISE_EMBED_WORKER" in words


async def test_what_waits_for_a_model_that_is_not_allowed(
    open_likewise: Opener, examine: Examine, as_superuser: Any
) -> None:
    async with one_waits(open_likewise, as_superuser):
        await as_superuser("UPDATE likewise.generations SET model = 'bge-small'")
    assert "LIKEWISE_MODELS_ALLOWED" in only(await examine(), "waiting")


async def test_what_waits_for_a_moment_is_no_fault(open_likewise: Opener, examine: Examine, as_superuser: Any) -> None:
    async with one_waits(open_likewise, as_superuser, minutes=1):
        found = await examine()
    assert faults(found) == {}
    assert "waits 6" in found["waiting"].what


async def test_texts_that_have_failed(open_likewise: Opener, examine: Examine, as_superuser: Any) -> None:
    async with open_likewise() as lw:
        await lw.collection("notes").add([{"id": str(n), "text": f"text {n}"} for n in range(3)])
    await as_superuser("UPDATE likewise.contents SET state = 'failed', reason = 'text_failed'")
    words = only(await examine(), "failed texts")
    assert "3 could not be embedded (text_failed 3)" in words


# The embedded Postgres, and what never ends


@pytest.fixture
def folder() -> Iterator[Path]:
    made = open_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


async def test_the_embedded_database_stopped_running_and_being_started(
    examine: Examine, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = {
        "DATA_DIR": str(folder),
        "DATABASE_URL": "",
        "DATABASE_SERVING_URL": "",
        "MODELS_DIR": str(tiny_model.parent),
    }
    # When: there is none yet; it is stopped; another process has it
    assert faults(await examine(**embedded)) == {}
    assert faults(await examine(**embedded)) == {}
    server = await EmbeddedServer.start(folder, durable=False)
    try:
        found = await examine(**embedded)
    finally:
        await server.close()
    assert faults(found) == {}
    assert "embedded" in found["database"].what
    # When: another process does not come to an end with it
    monkeypatch.setattr(database_checks, "BUSY_SECONDS", 0.05)
    with open_lock(folder / "postgres" / "lock") as lock:
        assert lock.try_exclusive()
        found = await examine(**embedded)
    assert "stop that process" in only(found, "database")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")
async def test_the_embedded_database_runs_and_does_not_answer(
    examine: Examine, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(database_checks, "LOOK_SECONDS", 0.5)
    server = await EmbeddedServer.start(folder, durable=False)
    stopped = postgres_processes(server.data_directory, folder / "postgres" / "running")
    try:
        for pid in stopped:
            with suppress(ProcessLookupError):  # one that was at its end
                os.kill(pid, signal.SIGSTOP)
        # When
        async with asyncio.timeout(PATIENCE):
            found = await examine(
                DATA_DIR=str(folder), DATABASE_URL="", DATABASE_SERVING_URL="", MODELS_DIR=str(tiny_model.parent)
            )
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await server.close()
    # Then
    assert "has not answered" in only(found, "database")


async def test_a_database_that_does_not_come_to_an_end(
    open_likewise: Opener, examine: Examine, database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given: somebody has locked what the doctor would read
    async with open_likewise(worker=False) as lw:
        await lw.collection("notes").create()
    monkeypatch.setattr(database_checks, "LOOK_SECONDS", 1.0)
    async with await psycopg.AsyncConnection.connect(database.owner) as other:
        await other.execute("LOCK TABLE likewise.waiting, likewise.contents IN ACCESS EXCLUSIVE MODE")
        # When
        found = await examine()
    # Then
    assert set(faults(found)) == {"waiting", "failed texts"}
    assert "takes too long" in faults(found)["waiting"]
