"""`likewise db purge`: after it no file of the database has a byte of what was deleted."""

import asyncio
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import likewise
from likewise.db.maintenance import Maintenance
from likewise.db.purge import OF_CRASH, OF_LOG, OF_STATISTICS, purge
from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import ProviderResult, Role
from likewise.library import Likewise
from likewise.search.analyzer import analyze
from likewise.settings import Settings, load_settings
from likewise.testing import DatabaseUrls, FakeProvider, open_folder
from tests.files import files_with
from tests.ingest.rows import asked
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
GONE = "quokkazanzibar"
TEXT = f"{GONE} pump fails in the zeppelinfjord when marzipanotter is cold"
LARGE = base64.b64encode(hashlib.shake_256(b"large").digest(45_000)).decode()
SEALED = hashlib.shake_256(b"sealed").digest(64)
INPUT = hashlib.shake_256(b"input").digest(64)


class DenseProvider(FakeProvider):
    """Vectors of which any sixteen bytes tell whose they are."""

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        result = await super().embed(texts, role)
        return replace(result, vectors=np.stack([dense(text) for text in texts]))


def dense(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    vector = np.random.default_rng(seed).standard_normal(384).astype(np.float32)
    return vector / np.linalg.norm(vector)


def canaries() -> dict[str, bytes]:
    """What must be gone, as the files of Postgres would have it."""
    halves = dense(TEXT).astype("<f2").tobytes()
    terms = np.array(sorted(analyze(TEXT)), "<i4").tobytes()
    return {
        "text": TEXT.encode(),
        "word": GONE.encode(),
        "id": b"the-id-of-a-walrus",
        "payload": b"a-payload-of-a-walrus",
        "dropped": b"dropped-collection-of-a-narwhal",
        "large payload": LARGE[30_000:30_040].encode(),
        **{f"vector at {at}": halves[at : at + 16] for at in (0, 256, 752)},
        "terms": terms[:16],
        "sealed text": SEALED[16:48],
        "a task's input": INPUT[16:48],
        "a job's item": b"an-item-of-a-job",
        "a job's result": b"a-result-of-a-job",
    }


@pytest.fixture
def settings() -> AsyncIterator[Settings]:
    """An embedded Postgres of the test's own, which flushes as one that serves does."""
    folder = open_folder()
    yield load_settings(data_dir=folder)
    shutil.rmtree(folder, ignore_errors=True)


def opened(settings: Settings) -> Any:
    embedder = Embedder(settings, providers={settings.model: lambda spec: DenseProvider()})
    return likewise.open(settings, embedder=embedder)


async def as_superuser(lw: Likewise, *statements: str) -> list[tuple[Any, ...]]:
    """What the last of them finds."""
    found = [await asked(lw.runtime.database.server.superuser_url("likewise"), one) for one in statements]
    return found[-1]


def purged_by_command(settings: Settings) -> subprocess.CompletedProcess[str]:
    """The verb, as a process of its own."""
    program = [sys.executable, "-c", "from likewise.cli.main import run; run()", "db", "purge", "--json"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIKEWISE_")}
    environment = kept | {"PYTHONPATH": str(ROOT), "LIKEWISE_DATA_DIR": str(settings.data_dir)}
    return subprocess.run(
        program, check=False, capture_output=True, text=True, timeout=PATIENCE, env=environment, cwd=settings.data_dir
    )


async def store_and_delete(lw: Likewise) -> None:
    """Records beside each other that stay and that go, an index over their vectors, statistics over all."""
    notes, gone = lw.collection("notes"), lw.collection("narwhals")
    stays = [{"id": f"s{n}", "text": f"a valve {n} that stays", "payload": {"n": n}} for n in range(300)]
    goes = [
        {"id": f"the-id-of-a-walrus-{n}", "text": f"{TEXT} {n}" if n else TEXT,
         "payload": {"what": f"a-payload-of-a-walrus-{n}", "large": LARGE if n == 0 else ""}}
        for n in range(60)
    ]  # fmt: skip
    await notes.add(stays)
    await notes.add(goes)
    await gone.add([{"id": f"dropped-collection-of-a-narwhal-{n}", "text": f"narwhal {n}"} for n in range(20)])
    assert lw.runtime.database.owner_url is not None
    await Maintenance(lw.runtime.database.owner_url, max_scanned=1_000).step()
    assert (await notes.stats())["index"] == "hnsw"
    await as_superuser(
        lw,
        f"UPDATE contents SET sealed = '\\x{SEALED.hex()}' WHERE text LIKE 'a valve 7 %'",
        f"""INSERT INTO jobs (id, tenant, kind, input, result)
            SELECT gen_random_uuid(), 1, 'try', '\\x{INPUT.hex()}', '{{"a": "a-result-of-a-job"}}'
            FROM generate_series(1, 3)""",
        "INSERT INTO job_contents (tenant, job, item, content) SELECT 1, id, 'an-item-of-a-job', 1 FROM jobs",
        "ANALYZE",
    )
    for one in goes:
        await notes.delete(one["id"])
    await gone.drop()
    await as_superuser(lw, "UPDATE contents SET sealed = NULL", "DELETE FROM job_contents", "DELETE FROM jobs")


STATISTICS = "SELECT count(*) FROM pg_statistic WHERE concat(stavalues1::text, stavalues2::text) LIKE '{}'"


async def test_no_byte_of_what_was_deleted_is_left_in_a_file(settings: Settings) -> None:
    folder = settings.data_dir / "postgres"
    async with opened(settings) as lw:
        # Given: what was deleted is in the files all the same, after a plain vacuum too
        await store_and_delete(lw)
        await as_superuser(lw, "VACUUM", "CHECKPOINT")
        before = files_with(folder, canaries())
        assert set(before) == set(canaries())
        assert any(name.startswith("data/pg_wal") for name in before["text"])
        assert await as_superuser(lw, STATISTICS.format("%walrus%")) != [(0,)]
        # A table without rows keeps its statistics.
        assert await as_superuser(lw, STATISTICS.format("%an-item-of-a-job%")) != [(0,)]
        # When, beside the process that serves
        done = await asyncio.to_thread(purged_by_command, settings)
        # Then
        assert done.returncode == 0, done.stdout + done.stderr
        said = json.loads(done.stdout)
        assert said["busy"] == said["unreached"] == []
        assert "backups and dumps" in said["elsewhere"]
        assert files_with(folder, canaries()) == {}
        # And what stays is there, and found
        assert (await lw.collection("notes").stats())["records"] == 300
        hits = (await lw.collection("notes").search("valve 7 that stays")).hits
        assert hits[0].id == "s7"
        (state,) = await as_superuser(
            lw, "SELECT bool_and(indisvalid), count(*) FROM pg_index WHERE indrelid::regclass::text LIKE 'vec%'"
        )
        assert state == (True, 2)
    # And when that has stopped, by itself
    assert files_with(folder, canaries()) == {}
    assert (await asyncio.to_thread(purged_by_command, settings)).returncode == 0
    assert files_with(folder, {"stays": b"a valve 7 that stays"}) != {}


def left_behind(data: Path) -> Path:
    """What a crash would leave: a file with a number that no catalogue has."""
    newest = max((data / "base").iterdir(), key=lambda folder: int(folder.name))
    stray = newest / "99999999"
    stray.write_bytes(b"something")
    stray.chmod(0o644)
    return stray


async def test_a_table_that_others_keep_busy_is_named(settings: Settings) -> None:
    async with opened(settings) as lw:
        # Given: somebody who still sees what was deleted, and somebody who holds a table
        await lw.collection("notes").add([{"id": "the-id-of-a-walrus", "text": TEXT}])
        owner = lw.runtime.database.owner_url
        superuser = lw.runtime.database.server.superuser_url("likewise")
        async with (
            await psycopg.AsyncConnection.connect(owner) as reader,
            await psycopg.AsyncConnection.connect(owner) as holder,
        ):
            await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            await reader.execute("SELECT count(*) FROM likewise.records")
            await holder.execute("LOCK TABLE likewise.usage IN ACCESS SHARE MODE")
            await lw.collection("notes").delete("the-id-of-a-walrus")
            # And a file of no table
            stray = left_behind(settings.data_dir / "postgres" / "data")
            # When
            purged = await purge(owner, superuser, patience=0.0)
            # Then
            assert {"records", "contents", "usage"} <= set(purged.busy)
            assert "api_keys" not in purged.busy
            assert OF_CRASH in purged.unreached
            stray.unlink()
        # And when they are done
        again = await purge(owner, superuser, patience=20.0)
        assert again.busy == again.unreached == ()
    assert files_with(settings.data_dir / "postgres", {"text": TEXT.encode(), "id": b"the-id-of-a-walrus"}) == {}


async def test_of_a_database_that_is_not_ours_it_says_what_it_leaves(
    database: DatabaseUrls, open_likewise: Callable[..., Any]
) -> None:
    # Given
    url = database.owner
    # When
    purged = await purge(url, patience=5.0)
    # Then
    assert purged.tables > 10
    assert purged.busy == ()
    assert set(purged.unreached) == {OF_STATISTICS, OF_LOG}
    assert any("replicas" in one for one in purged.elsewhere)
