"""Several processes share one embedded Postgres, and any of them may be killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.postgres.server_process import IS_ROOT, LikewiseProcess, eventually, lives, made_folder, scratch_folder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")
# As root, most tests run as a plain user; those where root goes another way run as both.
PLAIN = "nobody" if IS_ROOT else None
as_root_too = pytest.mark.parametrize("user", ["root", PLAIN] if IS_ROOT else [PLAIN])

Starter = Callable[..., LikewiseProcess]


@pytest.fixture
def user() -> str | None:
    return PLAIN


@pytest.fixture
def folder(user: str | None) -> Iterator[Path]:
    with made_folder(user) as made:
        yield made


@pytest.fixture
def new_folder(user: str | None) -> Iterator[Path]:
    with scratch_folder(user) as made:
        yield made


@pytest.fixture
def start(folder: Path, user: str | None) -> Iterator[Starter]:
    """Starts Likewise processes of that user, on that folder unless told otherwise."""
    with ExitStack() as stack:

        def start_one(place: Path = folder, **options: object) -> LikewiseProcess:
            process = LikewiseProcess(place, **{"user": user, **options})  # type: ignore[arg-type]
            stack.callback(process.process.kill)
            return process

        yield start_one


def pid_of(process: LikewiseProcess) -> int:
    return int(str(process.facts()["pid"]))


def works(process: LikewiseProcess) -> bool:
    return process.ask("sql select 1") == 1


@as_root_too
def test_two_processes_share_one_server_and_the_last_one_out_stops_it(start: Starter, new_folder: Path) -> None:
    # Given two processes that start at the same time on a new folder
    first, second = start(new_folder), start(new_folder)
    first.started(), second.started()
    # Then they have one server
    postmaster = pid_of(first)
    assert pid_of(second) == postmaster
    # When the one leaves, the other's server goes on, and when that leaves too, the server stops
    first.end()
    assert works(second)
    assert lives(postmaster)
    second.end()
    assert not lives(postmaster)


def test_rows_outlive_the_server(start: Starter) -> None:
    first = start().started()
    first.ask("sql create table kept as select 42 as n")
    first.end()
    assert start().started().ask("sql select n from kept") == 42


def test_a_process_that_exits_without_closing_stops_the_server_too(start: Starter) -> None:
    process = start(leave=True).started()
    postmaster = pid_of(process)
    process.end()
    assert not lives(postmaster)


def test_a_killed_process_leaves_the_other_working(start: Starter) -> None:
    # Given the process that started the server and one that attached
    first = start().started()
    second = start().started()
    postmaster = pid_of(first)
    # When the first is killed
    first.kill()
    # Then the other works on, and as the last one out it stops the server that was never its child
    assert works(second)
    second.end()
    assert not lives(postmaster)


def test_the_server_of_a_killed_process_is_attached_to(start: Starter) -> None:
    # Given a server whose only process was killed
    first = start().started()
    postmaster = pid_of(first)
    first.kill()
    assert lives(postmaster)
    # When another starts, it takes the same server, and stops it
    second = start().started()
    assert pid_of(second) == postmaster
    second.end()
    assert not lives(postmaster)


@as_root_too
@pytest.mark.parametrize("survivor", ["parent", "attached"])
def test_a_killed_postmaster_is_started_again(start: Starter, survivor: str) -> None:
    # Given a server with one process left, which is its parent or is not
    parent, attached = start().started(), start().started()
    left, gone = (parent, attached) if survivor == "parent" else (attached, parent)
    gone.kill()
    postmaster = pid_of(left)
    # When the postmaster is killed
    os.kill(postmaster, signal.SIGKILL)
    # Then it is back within seconds, and still stops in the end
    assert eventually(lambda: works(left))
    again = pid_of(left)
    assert again != postmaster
    left.end()
    assert not lives(again)


def test_of_two_processes_one_starts_a_killed_postmaster_again(start: Starter) -> None:
    first, second = start().started(), start().started()
    os.kill(pid_of(first), signal.SIGKILL)
    assert eventually(lambda: works(first) and works(second))
    assert pid_of(first) == pid_of(second)


def test_a_parent_that_hangs_and_leaves_a_zombie_does_not_keep_the_other_waiting(start: Starter) -> None:
    # Given a parent of the postmaster that cannot reap it, because it is stopped
    parent, attached = start().started(), start().started()
    postmaster = pid_of(parent)
    parent.process.send_signal(signal.SIGSTOP)
    # When the postmaster is killed and so becomes a zombie
    os.kill(postmaster, signal.SIGKILL)
    # Then the other process starts the server again
    assert eventually(lambda: works(attached))
    parent.process.send_signal(signal.SIGCONT)
    assert eventually(lambda: works(parent))
    assert pid_of(parent) == pid_of(attached)


def test_a_busy_orphan_of_a_killed_postmaster_is_ended_before_the_next_start(start: Starter) -> None:
    # Given a session that computes and so does not notice the postmaster's end
    process, busy = start().started(), start().started()
    assert busy.process.stdin is not None
    print("sql select count(*) from generate_series(1, 1000000000)", file=busy.process.stdin, flush=True)
    count = "sql select count(*) from pg_stat_activity where state = 'active'"
    assert eventually(lambda: process.ask(count) == 2)
    # When the postmaster is killed
    os.kill(pid_of(process), signal.SIGKILL)
    # Then the server is started again and the orphan is gone
    assert eventually(lambda: works(process))
    assert process.ask(count) == 1


def test_everything_killed_at_once_starts_clean(start: Starter) -> None:
    first = start(durable=True).started()
    second = start().started()
    first.ask("sql create table kept as select 42 as n")
    postmaster = pid_of(first)
    for pid in (postmaster, first.process.pid, second.process.pid):
        os.kill(pid, signal.SIGKILL)
    assert start().started().ask("sql select n from kept") == 42


@as_root_too
def test_a_stale_pid_file_whose_number_another_process_has_now(start: Starter, folder: Path, user: str | None) -> None:
    # Given the files of a dead server that name a living process of the user that runs Postgres
    start().started().end()
    data = folder / "postgres" / "data"
    owner = data.stat()
    bystander = subprocess.Popen(["sleep", "60"], **({"user": owner.st_uid} if IS_ROOT else {}))  # type: ignore[call-overload]
    try:
        note = f"{bystander.pid}\n{data}\n1700000000\n5432\n{folder}/postgres/socket\n\n 1 1\nready\n"
        for path in (data / "postmaster.pid", folder / "postgres" / "socket" / ".s.PGSQL.5432.lock"):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            os.chown(path.parent, owner.st_uid, owner.st_gid)
            path.write_text(note)
            path.chmod(0o600)
            os.chown(path, owner.st_uid, owner.st_gid)
        # When a process starts, then it has a server and the bystander lives
        assert works(start().started())
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_ctrl_c_in_one_of_two(start: Starter) -> None:
    # Given a process that started the server and one that attached
    first, second = start().started(), start().started()
    postmaster = pid_of(second)
    # When SIGINT goes to the whole process group of the first, as from a terminal
    os.killpg(first.process.pid, signal.SIGINT)
    first.process.wait(PATIENCE)
    # Then the other works on with the same server
    assert works(second)
    assert pid_of(second) == postmaster


def test_ctrl_c_during_the_first_start_leaves_nothing_running(start: Starter, new_folder: Path) -> None:
    process = start(new_folder)
    assert eventually(lambda: [*new_folder.glob("postgres/data.new-*")])
    os.killpg(process.process.pid, signal.SIGINT)
    process.process.wait(PATIENCE)
    assert not (new_folder / "postgres" / "data" / "postmaster.pid").exists()
    assert works(start(new_folder).started())


@as_root_too
def test_a_kill_during_the_first_start_leaves_a_clean_next_one(start: Starter, new_folder: Path) -> None:
    process = start(new_folder)
    assert eventually(lambda: [*new_folder.glob("postgres/data.new-*/PG_VERSION")])
    process.kill()
    assert works(start(new_folder).started())


def test_a_removed_socket_is_made_again(start: Starter, folder: Path) -> None:
    process = start().started()
    (folder / "postgres" / "socket" / ".s.PGSQL.5432").unlink()
    assert eventually(lambda: works(process))


def test_a_long_path(start: Starter, new_folder: Path) -> None:
    # Given a folder whose socket path would be longer than the system takes
    long = new_folder / ("a" * 60) / ("b" * 60)
    process = start(long).started()
    # Then the server works, and its socket lies in a private folder that goes with it
    assert works(process)
    socket_folder = Path(str(process.ask("sql show unix_socket_directories")).strip('"'))
    assert socket_folder.parent == Path("/tmp")
    assert socket_folder.stat().st_mode & 0o777 == 0o700
    process.end()
    assert not socket_folder.exists()


@pytest.mark.skipif(not IS_ROOT, reason="only root can be two users")
def test_two_users_at_the_same_time(start: Starter) -> None:
    with made_folder("nobody") as one, scratch_folder("postgres") as two:
        first, second = start(one, user="nobody"), start(two, user="postgres")
        assert works(first.started())
        assert works(second.started())


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_root_and_the_user_that_runs_postgres_share_a_server() -> None:
    with made_folder() as folder:
        # Given a server that root started
        by_root = LikewiseProcess(folder).started()
        runner = folder.joinpath("postgres", "data").owner()
        # When the user that runs it attaches, and starts it again after a kill, root gone
        other = LikewiseProcess(folder, runner).started()
        assert pid_of(by_root) == pid_of(other)
        by_root.end()
        os.kill(pid_of(other), signal.SIGKILL)
        # Then it works for both
        assert eventually(lambda: works(other))
        by_root = LikewiseProcess(folder).started()
        assert works(by_root)
        by_root.end()
        other.end()
