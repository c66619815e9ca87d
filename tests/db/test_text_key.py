"""The text key: made once, the database's own, and changed while others work."""

import asyncio
import base64
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

import likewise
from likewise.db import text_key_rotation
from likewise.db.failures import KeyChanging
from likewise.db.pool import Pool, retried
from likewise.db.text_key import TextKeyFile, TextKeys, source_of
from likewise.db.text_key_rotation import RotationOutcome, SealedCounts, TextKeyLost
from likewise.embedding.embedder import Embedder
from likewise.errors import Conflict, LikewiseError, SettingsError, TextKeyUnavailable, WrongTextKey
from likewise.library import Likewise
from likewise.sealing import about_collection, about_content, about_job, new_key
from likewise.settings import Settings, load_settings
from likewise.testing import DatabaseUrls, FakeProvider
from tests.environment import without_settings
from tests.flows.invariants import broken
from tests.ingest.rows import asked
from tests.jobs import ended
from tests.patience import PATIENCE, until

TEXT = "a text that waits \ud800 sealed"


def idle(settings: Settings) -> AbstractAsyncContextManager[Likewise]:
    """One that seals nothing."""
    embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
    return likewise.open(settings, worker=False, embedder=embedder)


async def begin(text_keys: TextKeys, pool: Pool) -> TextKeys:
    """As whoever seals something begins."""

    async def once() -> None:
        async with pool.nobody() as tx:
            await text_keys.hold(tx)

    await retried(once)
    return text_keys


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Likewise]:
    """One that has sealed something."""
    async with idle(settings) as lw:
        await begin(lw.runtime.text_keys, lw.runtime.pool)
        yield lw


def with_keys(settings: Settings, key: str | None, following: str | None = None) -> Settings:
    return settings.model_copy(update={"text_key": key, "text_key_next": following})


async def rotate(settings: Settings, **options: Any) -> RotationOutcome:
    """As the verb does."""
    assert settings.database_url is not None
    pool = await Pool(settings.database_url, max_size=1).open()
    try:
        return await text_key_rotation.rotate(pool, source_of(settings), **options)
    finally:
        await pool.close()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Waiting:
    """What waits sealed: texts, the input of a task, and a collection's key of words."""

    def __init__(self, lw: Likewise, database: DatabaseUrls) -> None:
        self.lw = lw
        self.database = database
        self.job: UUID = uuid4()

    async def store(self, texts: int = 450) -> None:
        lw = self.lw
        await lw.collection("notes").create()
        sealing = lw.runtime.sealing
        hashes = [os.urandom(32) for _ in range(texts)]
        values = [sealing.seal(f"{TEXT} {n}", about_content(1, 1, one)) for n, one in enumerate(hashes)]
        await asked(
            self.database,
            """INSERT INTO contents (tenant, collection, text_hash, sealed, chars)
               SELECT 1, 1, h, s, 10 FROM unnest(%s::bytea[], %s::bytea[]) AS i (h, s)""",
            [hashes, values],
        )
        await asked(
            self.database,
            "INSERT INTO jobs (id, tenant, kind, input, run_after) VALUES (%s, 1, 'try', %s, now())",
            [self.job, sealing.seal_bytes(b"input", about_job(1, self.job.bytes))],
        )
        await asked(
            self.database,
            "UPDATE collections SET terms_key = %s WHERE id = 1",
            [sealing.seal_bytes(b"k" * 32, about_collection(1, "notes"))],
        )

    async def is_readable(self, lw: Likewise | None = None) -> bool:
        sealing = (lw or self.lw).runtime.sealing
        try:
            for n, (text_hash, sealed) in enumerate(
                await asked(self.database, "SELECT text_hash, sealed FROM contents ORDER BY pk")
            ):
                assert sealing.unseal(sealed, about_content(1, 1, text_hash)) == f"{TEXT} {n}"
            ((task,),) = await asked(self.database, "SELECT input FROM jobs")
            ((key,),) = await asked(self.database, "SELECT terms_key FROM collections")
            assert sealing.unseal_bytes(task, about_job(1, self.job.bytes)) == b"input"
            assert sealing.unseal_bytes(key, about_collection(1, "notes")) == b"k" * 32
        except TextKeyUnavailable:
            return False
        return True


# Where it comes from


async def test_who_seals_nothing_needs_no_key(settings: Settings, database: DatabaseUrls) -> None:
    # Given a database that two use, of whom neither has a text to hide, from different folders
    for folder in ("one", "two"):
        async with idle(settings.model_copy(update={"data_dir": settings.data_dir / folder})) as lw:
            await lw.collection("notes").add([{"id": "a", "text": "kept"}], wait=False)
    # Then
    assert await asked(database, "SELECT id FROM text_key") == []
    assert not list(settings.data_dir.rglob("text.key"))


async def test_the_first_that_seals_makes_it_and_the_next_ones_keep_to_it(
    settings: Settings, database: DatabaseUrls
) -> None:
    # When
    async with opened(settings) as lw:
        first = lw.runtime.sealing.current.id
    async with opened(settings) as lw:
        second = lw.runtime.sealing.current.id
    # Then
    file = settings.data_dir / "text.key"
    assert len(base64.b64decode(file.read_text())) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [name for name in names_in(settings.data_dir) if "text" in name] == ["text.key"]
    assert first == second
    assert await asked(database, "SELECT id FROM text_key") == [(first,)]
    assert file.read_text().strip() not in repr(lw.runtime.text_keys) + repr(lw.runtime.sealing.current)


async def test_those_that_start_at_once_agree(settings: Settings, tmp_path: Path) -> None:
    pool = await Pool(settings.database_serving_url or "", max_size=4).open()
    try:
        processes = [await TextKeys.open(settings, pool) for _ in range(8)]
        opened = await asyncio.gather(*(begin(one, pool) for one in processes))
    finally:
        await pool.close()
    assert len({one.sealing.current.id for one in opened}) == 1
    # And of a file alone, in threads
    made = await asyncio.gather(*(asyncio.to_thread(TextKeyFile(tmp_path).make) for _ in range(16)))
    assert len({key.id for key in made}) == 1
    assert names_in(tmp_path) == ["text.key"]


async def test_two_folders_at_once_agree_on_one_and_the_other_is_refused(settings: Settings, tmp_path: Path) -> None:
    elsewhere = settings.model_copy(update={"data_dir": tmp_path})
    pool = await Pool(settings.database_serving_url or "", max_size=4).open()
    try:
        processes = [await TextKeys.open(one, pool) for one in (settings, elsewhere)]
        answers = await asyncio.gather(*(begin(one, pool) for one in processes), return_exceptions=True)
    finally:
        await pool.close()
    assert sorted(type(answer).__name__ for answer in answers) == ["TextKeyUnavailable", "TextKeys"]


def remove(file: Path) -> None:
    file.unlink()


def another(file: Path) -> None:
    file.write_text(new_key())


def open_to_a_group(file: Path) -> None:
    file.chmod(0o640)


def link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


def empty(file: Path) -> None:
    file.write_text("")


def short(file: Path) -> None:
    file.write_text(base64.b64encode(b"secret").decode())


def rubbish(file: Path) -> None:
    file.write_bytes(b"\xff" * 5_000)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove, "rotate-text --lost"),
        (another, "another key than the database's"),
        (open_to_a_group, "chmod 600"),
        (link, "no plain file"),
        (folder, "no plain file"),
        (pipe, "no plain file"),
        (empty, "holds no key"),
        (short, "holds no key"),
        (rubbish, "holds no key"),
    ],
)
async def test_a_key_that_is_not_the_databases_is_refused_with_the_mend(
    settings: Settings, spoil: Callable[[Path], None], words: str
) -> None:
    # Given
    async with opened(settings):
        pass
    file = settings.data_dir / "text.key"
    written = file.read_text().strip()
    # When
    spoil(file)
    with pytest.raises(WrongTextKey) as refused:
        async with opened(settings):
            pass
    # Then
    assert words in refused.value.detail
    assert "\n" not in refused.value.detail
    assert written not in refused.value.detail
    assert isinstance(refused.value, SettingsError)


async def test_a_folder_that_cannot_be_written_names_the_setting(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WrongTextKey, match="LIKEWISE_TEXT_KEY"):
        async with opened(settings.model_copy(update={"data_dir": tmp_path / "file"})):
            pass


async def test_the_setting_wins_over_the_file(settings: Settings) -> None:
    key = new_key()
    (settings.data_dir / "text.key").write_text("not looked at")
    async with opened(with_keys(settings, key)):
        pass
    with pytest.raises(WrongTextKey, match="LIKEWISE_TEXT_KEY is another key"):
        async with opened(with_keys(settings, new_key())):
            pass
    with pytest.raises(WrongTextKey, match="LIKEWISE_TEXT_KEY_NEXT is set and LIKEWISE_TEXT_KEY is not"):
        async with opened(with_keys(settings, None, key)):
            pass


@pytest.mark.parametrize("name", ["LIKEWISE_TEXT_KEY", "LIKEWISE_TEXT_KEY_NEXT"])
@pytest.mark.parametrize("value", ["hunter2", base64.b64encode(b"x" * 31).decode(), "é" * 44, "=" * 44])
def test_a_setting_that_is_no_key(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name}: .*openssl rand -base64 32") as refused:
        load_settings()
    assert value not in refused.value.detail


def test_a_key_is_not_shown_with_the_settings() -> None:
    key = new_key()
    assert key not in repr(load_settings(text_key=key, text_key_next=key))


# Changing it


async def test_everything_that_waits_is_sealed_anew(settings: Settings, database: DatabaseUrls) -> None:
    # Given
    async with opened(settings) as lw:
        waiting = Waiting(lw, database)
        await waiting.store()
        old = lw.runtime.sealing.current
    written = (settings.data_dir / "text.key").read_text()
    told: list[tuple[int, int]] = []
    # When
    rotated = await rotate(settings, report=lambda done, total: told.append((done, total)))
    # Then
    assert rotated == RotationOutcome(SealedCounts(450, 1, 1), SealedCounts(0, 0, 0))
    assert told[-1] == (452, 452)
    assert (settings.data_dir / "text.key").read_text() != written
    assert not (settings.data_dir / "text.key.next").exists()
    sealed = await asked(
        database,
        "SELECT sealed FROM contents UNION ALL SELECT input FROM jobs UNION ALL SELECT terms_key FROM collections",
    )
    assert not [one for (one,) in sealed if one.startswith(old.id)]
    async with opened(settings) as lw:
        assert lw.runtime.sealing.current.id != old.id
        assert await waiting.is_readable(lw)


async def test_a_server_that_runs_meanwhile_goes_along(settings: Settings, database: DatabaseUrls) -> None:
    # Given
    async with opened(settings) as lw:
        waiting = Waiting(lw, database)
        await waiting.store(3)
        before = lw.runtime.sealing.current.id
        # When
        await rotate(settings)
        # Then it reads what was sealed anew
        assert await waiting.is_readable()
        # And what is written from now on is sealed with the new key
        await begin(lw.runtime.text_keys, lw.runtime.pool)
        assert lw.runtime.sealing.current.id != before
        assert await asked(database, "SELECT id FROM text_key") == [(lw.runtime.sealing.current.id,)]


async def test_texts_are_stored_and_embedded_while_it_is_changed(
    settings: Settings, database: DatabaseUrls, provider: FakeProvider
) -> None:
    # Given a worker that embeds slowly, so that something always waits, and writers that do not stop
    provider.delay = 0.03
    embedder = Embedder(settings, providers={settings.model: lambda spec: provider})
    async with likewise.open(settings, embedder=embedder) as lw:
        tenant, stop = await lw.tenant(), asyncio.Event()
        accepted: list[UUID] = []

        async def write(who: str) -> None:
            while not stop.is_set():
                text = f"a pump of {who}, {len(accepted)}"
                accepted.append((await lw.segments.embed(tenant, who, str(len(accepted)), text)).job_id)

        writing = [asyncio.create_task(write(who)) for who in ("one", "two", "three")]
        ids, anew = set(), 0
        # When the key is changed, time after time
        for change in range(1, 4):
            await until(lambda change=change: len(accepted) > change * 30)  # type: ignore[misc]
            anew += (await rotate(settings)).sealed.texts
            ((now,),) = await asked(database, "SELECT id FROM text_key")
            ids.add(now)
            waits = await asked(database, "SELECT sealed FROM contents WHERE sealed IS NOT NULL")
            assert all(sealed.startswith(now) for (sealed,) in waits)
        before = len(accepted)
        await until(lambda: len(accepted) > before + 30)
        stop.set()
        await asyncio.gather(*writing)
        # Then nobody was refused, and every text has its vector
        assert {(await ended(lw, tenant, job)).status for job in accepted} == {"SUCCEEDED"}
    assert (len(ids), anew > 0) == (3, True)
    assert await asked(database, "SELECT count(*), count(sealed) FROM contents") == [(len(accepted), 0)]
    assert await broken(database.owner, provider) == {}


async def test_nobody_seals_while_it_is_changed_and_it_waits_for_those_who_do(
    settings: Settings, database: DatabaseUrls
) -> None:
    async with opened(settings) as lw:
        pool, keys = lw.runtime.pool, lw.runtime.text_keys
        # Given a change that has begun, when somebody writes, then that is to be tried again
        async with await psycopg.AsyncConnection.connect(database.owner) as other:
            await other.execute("SELECT pg_advisory_xact_lock(7722, 0)")
            with pytest.raises(KeyChanging):
                async with pool.tenant(1) as tx:
                    await keys.hold(tx)
        # Given a write, when the key is to be changed, then that waits for its end
        async with pool.tenant(1) as tx:
            await keys.hold(tx)
            change = asyncio.create_task(rotate(settings))
            done, _ = await asyncio.wait({change}, timeout=0.3)
            assert not done
        await change
        # And of two changes at once one is refused
        with TextKeyFile(settings.data_dir).alone() as alone:
            assert alone
            with pytest.raises(Conflict, match="Another process"):
                await rotate(settings)


async def test_by_settings_it_takes_the_next_one(settings: Settings, database: DatabaseUrls) -> None:
    # Given two servers, of which one knows what comes
    first, second = new_key(), new_key()
    knowing, unknowing = with_keys(settings, first, second), with_keys(settings, first)
    async with opened(unknowing) as late, opened(knowing) as early:
        waiting = Waiting(early, database)
        await waiting.store(3)
        # When
        with pytest.raises(WrongTextKey, match="openssl rand -base64 32"):
            await rotate(unknowing)
        await rotate(knowing)
        # Then
        assert await waiting.is_readable(early)
        assert not await waiting.is_readable(late)
        async with early.runtime.pool.tenant(1) as tx:
            await early.runtime.text_keys.hold(tx)
        with pytest.raises(TextKeyUnavailable, match="Restart it"):
            async with late.runtime.pool.tenant(1) as tx:
                await late.runtime.text_keys.hold(tx)
    # And what starts afterwards needs it in either place
    for fitting in (knowing, with_keys(settings, second), with_keys(settings, second, new_key())):
        async with opened(fitting) as lw:
            assert await waiting.is_readable(lw)
    with pytest.raises(WrongTextKey, match="in use already"):
        await rotate(knowing)
    assert list(settings.data_dir.glob("text.key*")) == []


# A key that is lost


async def test_without_the_key_nothing_is_changed(settings: Settings, database: DatabaseUrls) -> None:
    async with opened(settings) as lw:
        waiting = Waiting(lw, database)
        await waiting.store(3)
        before = await asked(database, "SELECT pk, sealed FROM contents ORDER BY pk")
        # When
        (settings.data_dir / "text.key").unlink()
        with pytest.raises(WrongTextKey, match="--lost"):
            await rotate(settings)
        # Then
        assert list(settings.data_dir.glob("text.key.next")) == []
        assert await asked(database, "SELECT pk, sealed FROM contents ORDER BY pk") == before


async def test_a_text_of_an_unknown_key_stops_the_change(settings: Settings, database: DatabaseUrls) -> None:
    async with opened(settings) as lw:
        waiting = Waiting(lw, database)
        await waiting.store(3)
        await asked(database, "UPDATE contents SET sealed = decode(repeat('00', 60), 'hex') WHERE pk = 2")
        with pytest.raises(TextKeyLost, match="--lost"):
            await rotate(settings)
        assert await opens(settings)
        # When it is given up, then the others are not
        rotated = await rotate(settings, lost=True)
    assert rotated == RotationOutcome(SealedCounts(2, 1, 1), SealedCounts(1, 0, 0))
    found = await asked(database, "SELECT state, reason, sealed IS NULL FROM contents ORDER BY pk")
    assert found == [("live", None, False), ("failed", "text_key_lost", True), ("live", None, False)]


async def opens(settings: Settings) -> bool:
    try:
        async with opened(settings):
            return True
    except LikewiseError:
        return False


@pytest.mark.parametrize("spoil", [remove, another, empty])
async def test_a_lost_key_gives_up_what_waits_and_a_new_one_is_known(
    settings: Settings, database: DatabaseUrls, spoil: Callable[[Path], None]
) -> None:
    # Given
    async with opened(settings) as lw:
        waiting = Waiting(lw, database)
        await waiting.store(3)
        await asked(
            database, "INSERT INTO waiting (tenant, generation, content, lane) SELECT 1, 1, pk, 0 FROM contents"
        )
    spoil(settings.data_dir / "text.key")
    assert not await opens(settings)
    # When
    rotated = await rotate(settings, lost=True)
    # Then
    assert rotated == RotationOutcome(SealedCounts(0, 0, 0), SealedCounts(3, 1, 1))
    assert await asked(database, "SELECT DISTINCT state, reason, sealed IS NULL FROM contents") == [
        ("failed", "text_key_lost", True)
    ]
    assert await asked(database, "SELECT state, error, input FROM jobs") == [("FAILED", "text_key_lost", b"")]
    assert await asked(database, "SELECT count(*) FROM waiting") == [(0,)]
    async with opened(settings) as lw:
        ((key,),) = await asked(database, "SELECT terms_key FROM collections")
        fresh = lw.runtime.sealing.unseal_bytes(key, about_collection(1, "notes"))
        assert fresh != b"k" * 32


# Killed at any step

KILLED = """
import os, signal, sys
from likewise.db import text_key_rotation
from likewise.db.text_key import TextKeyFile
from likewise.cli.main import main

step = sys.argv[1]
settled = []

def dies(at):
    if at == step:
        os.kill(os.getpid(), signal.SIGKILL)

make_next, settle, run = TextKeyFile.make_next, TextKeyFile.settle, text_key_rotation._Rotation.run

def making(self, recorded, **options):
    dies("before the file")
    made = make_next(self, recorded, **options)
    dies("after the file")
    return made

async def running(self):
    done = await run(self)
    dies("before the commit")
    return done

def settling(self, recorded, **options):
    settled.append(recorded)
    if len(settled) == 2:
        dies("after the commit")
    settle(self, recorded, **options)
    if len(settled) == 2:
        dies("after the rename")

TextKeyFile.make_next, TextKeyFile.settle, text_key_rotation._Rotation.run = making, settling, running
sys.exit(main(["keys", "rotate-text"]))
"""


@pytest.mark.parametrize(
    "step", ["before the file", "after the file", "before the commit", "after the commit", "after the rename"]
)
async def test_a_change_that_is_killed_leaves_a_state_that_starts(
    settings: Settings, database: DatabaseUrls, step: str
) -> None:
    # Given
    async with opened(settings) as lw:
        waiting = Waiting(lw, database)
        await waiting.store(250)
        old = lw.runtime.sealing.current.id
    environment = without_settings() | {
        "LIKEWISE_DATA_DIR": str(settings.data_dir),
        "LIKEWISE_DATABASE_URL": database.owner,
        "LIKEWISE_DATABASE_SERVING_URL": database.serving,
    }
    # When
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, step],
        check=False,
        env=environment,
        cwd=settings.data_dir,
        timeout=PATIENCE,
    )
    # Then
    assert done.returncode == -9
    committed = step.startswith("after the ") and step != "after the file"
    async with opened(settings) as lw:
        assert (lw.runtime.sealing.current.id != old) == committed
        assert await waiting.is_readable(lw)
        keys = TextKeyFile(settings.data_dir).keys()
        # The start ended what had only to be ended.
        assert keys[0].id == lw.runtime.sealing.current.id
        async with lw.runtime.pool.tenant(1) as tx:
            await lw.runtime.text_keys.hold(tx)
    # And it can be changed again
    assert (await rotate(settings)).sealed == SealedCounts(250, 1, 1)
    async with opened(settings) as lw:
        assert await waiting.is_readable(lw)
    assert not (settings.data_dir / "text.key.next").exists()
