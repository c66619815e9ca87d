"""The server process on a cluster, whoever started it: look at it, start it, stop it."""

import enum
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from likewise.errors import ServerStartError, StorageFault
from likewise.observe.logs import get_logger
from likewise.postgres.account import SystemUser
from likewise.postgres.binaries import Binaries, output_of
from likewise.postgres.cluster import SOCKET_NAME, Cluster, disk_full, server_environment
from likewise.postgres.filelock import FileLock

log = get_logger(__name__)

# Processes are known from /proc, or from `ps` and `lsof` where there is none.
PROC = Path("/proc")
HAS_PROC = (PROC / "self" / "stat").exists()

POLL_SECONDS = 0.005
PING_SECONDS = 0.05  # each that is refused is a line in the log
START_SECONDS = 600.0  # recovery after a crash replays up to max_wal_size
STOP_SECONDS = 60.0  # a fast shutdown writes all of shared_buffers
KILL_SECONDS = 5.0
MAX_LOG_BYTES = 2**20
FAULTS_OF_STORAGE = ("Input/output error", "Read-only file system")
# The folder of a core file is the data directory, and it would hold rows.
WITHOUT_CORE_FILES = ("/bin/sh", "-c", 'ulimit -c 0; exec "$@"', "sh")

# Those that this process started; a dead one stays a zombie, which looks alive, until it is asked for.
_children: list[subprocess.Popen[bytes]] = []


class ServerState(enum.Enum):
    """The state of a server's process."""

    ABSENT = enum.auto()
    STARTING = enum.auto()
    READY = enum.auto()
    STOPPING = enum.auto()
    ORPHANED = enum.auto()  # the postmaster is gone and other processes of it are not
    DEAF = enum.auto()  # it lives, and its socket was removed


@dataclass(frozen=True)
class RunningServer:
    """The facts that the starter of a server leaves in the `running` file for those who attach."""

    binaries: Path
    version: str
    socket_folder: Path


@dataclass(frozen=True)
class _PidFile:
    pid: int
    status: str


class Postmaster:
    """The server process on a cluster.

    Its processes inherit a lock on the `running` file from their starter, so the kernel says whether any of them lives:
    no number of a process can mislead, and it holds across containers that share the folder. All methods but `look`
    are called with the cluster's `lock` held.
    """

    def __init__(self, cluster: Cluster, given_up: threading.Event | None = None) -> None:
        self._cluster = cluster
        self._given_up = given_up or threading.Event()
        self._running = FileLock(cluster.running)

    def look(self) -> ServerState:
        """Look at what there is now; a few system calls."""
        _reap()
        if not self._running.held_by_another():
            return ServerState.ABSENT
        noted = self._pid_file()
        if noted is None:
            return ServerState.STARTING
        if not is_postgres_on(noted.pid, self._cluster.data):
            # Another container's processes have numbers that mean nothing here.
            return ServerState.READY if self._answers() else ServerState.ORPHANED
        if noted.status in ("ready", "standby"):
            return ServerState.READY if (self.launched().socket_folder / SOCKET_NAME).exists() else ServerState.DEAF
        return ServerState.STOPPING if noted.status == "stopping" else ServerState.STARTING

    def launched(self) -> RunningServer:
        """Read what its starter noted."""
        noted = json.loads(self._cluster.running.read_text())
        return RunningServer(Path(noted["binaries"]), noted["version"], Path(noted["socket_folder"]))

    @property
    def address(self) -> str:
        """The address for a user who may log in, so that nothing is written to the log."""
        folder = self.launched().socket_folder
        return make_conninfo(host=str(folder), port=5432, user="postgres", dbname="postgres", connect_timeout=5)

    def launch(self, binaries: Binaries, account: SystemUser, socket_folder: Path) -> None:
        """Start the process, in a session of its own so that no Ctrl-C for Likewise reaches it, and wait for it."""
        self._remove_stale_files(socket_folder)
        if (written := self._cluster.log.stat().st_size) > MAX_LOG_BYTES:
            os.truncate(self._cluster.log, written := 0)
        child = self._spawn(binaries, account, socket_folder)
        end = time.monotonic() + START_SECONDS
        while (state := self.look()) is not ServerState.READY or not self._answers():
            if state is ServerState.ABSENT or child.poll() is not None:
                raise self._start_error(written)
            if time.monotonic() > end:
                raise ServerStartError(
                    f"Postgres has not become ready in {START_SECONDS:.0f} s (log: {self._cluster.log})."
                )
            time.sleep(POLL_SECONDS)

    def settle(self) -> ServerState:
        """Wait out a start or a stop that someone else began and end what a killed postmaster left; READY or ABSENT."""
        end = time.monotonic() + START_SECONDS
        while (state := self.look()) is not ServerState.ABSENT:
            if state is ServerState.READY and self._answers_within(START_SECONDS):
                break
            if time.monotonic() > end or self._given_up.is_set():
                raise ServerStartError(
                    f"The Postgres on {self._cluster.data} is stuck. End its processes and try again."
                )
            if state is ServerState.ORPHANED:
                self._end_orphans()
            elif state is ServerState.DEAF:
                self.stop()
            elif state is ServerState.STOPPING and not self._gone_within(STOP_SECONDS):
                self._stop_at_once()
            else:
                time.sleep(POLL_SECONDS)
        return state

    def stop(self) -> None:
        """End every session and shut down with a checkpoint; if that hangs, without one: the next start recovers."""
        state = self.look()
        if state is ServerState.ORPHANED:
            self._end_orphans()
        # Postgres 18 never ends if it is asked to shut down fast while it recovers; there is nothing to write then.
        asked = (state is ServerState.DEAF or self._answers_within(KILL_SECONDS)) and self._signal(signal.SIGINT)
        if not self._gone_within(STOP_SECONDS if asked else 0):
            self._stop_at_once()

    def _stop_at_once(self) -> None:
        self._signal(signal.SIGQUIT)
        if not self._gone_within(KILL_SECONDS):
            log.warning("postgres_not_stopped")

    def close(self) -> None:
        """Forget the process without touching it."""
        self._running.close()

    def _spawn(self, binaries: Binaries, account: SystemUser, socket_folder: Path) -> subprocess.Popen[bytes]:
        lock = FileLock(self._cluster.running)
        try:
            if not lock.exclusive_within(KILL_SECONDS):
                raise ServerStartError(f"Another process holds {self._cluster.running}. Stop it and try again.")
            _note(lock, RunningServer(binaries.folder, binaries.version, socket_folder))
            program, settings = binaries.folder / "postgres", f"config_file={self._cluster.configuration}"
            with _open_log(self._cluster.log) as output:
                child = subprocess.Popen(  # noqa: S603
                    [*WITHOUT_CORE_FILES, program, "-D", self._cluster.data, "-c", settings],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env=server_environment(),
                    pass_fds=[lock.descriptor],
                    start_new_session=True,
                    umask=0o077,
                    **account.spawn_options,
                )
        finally:
            lock.close()
        _children.append(child)
        return child

    def _remove_stale_files(self, socket_folder: Path) -> None:
        """Remove locks of a dead server whose number a living process has now: Postgres would believe them."""
        noted = self._pid_file()
        if noted is not None and is_postgres_on(noted.pid, self._cluster.data):
            raise ServerStartError(
                f"A Postgres that Likewise did not start runs on {self._cluster.data} (process {noted.pid}). "
                "Stop it first."
            )
        (socket_folder / SOCKET_NAME).unlink(missing_ok=True)
        (socket_folder / f"{SOCKET_NAME}.lock").unlink(missing_ok=True)
        if noted is None or _exists(noted.pid):
            (self._cluster.data / "postmaster.pid").unlink(missing_ok=True)

    def _end_orphans(self) -> None:
        """End what a killed postmaster left: idle ones go by themselves, busy ones do not notice."""
        for request in (signal.SIGQUIT, signal.SIGKILL):
            for pid in postgres_processes(self._cluster.data, self._cluster.running):
                with suppress(ProcessLookupError):
                    os.kill(pid, request)
            if self._gone_within(KILL_SECONDS):
                return
        raise ServerStartError(
            f"Processes of an earlier Postgres still hold {self._cluster.data} and cannot be ended from here. "
            "End them first."
        )

    def _gone_within(self, seconds: float) -> bool:
        gone = self._running.exclusive_within(seconds)
        self._running.release()
        _reap()
        return gone

    def _pid_file(self) -> _PidFile | None:
        """Read the first and the eighth line of postmaster.pid; None if it is absent or half written."""
        try:
            lines = (self._cluster.data / "postmaster.pid").read_text().splitlines()
            return _PidFile(int(lines[0]), lines[7].strip() if len(lines) > 7 else "starting")
        except (FileNotFoundError, ValueError, IndexError):
            return None

    def _answers(self) -> bool:
        """Ask whether it takes connections; while it recovers from the crash of a session it does not."""
        try:
            address = self.address
        except (OSError, ValueError, KeyError):
            return False
        return PGconn.ping(address.encode()) == Ping.OK

    def _answers_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not (answers := self._answers()) and self.look() is not ServerState.ABSENT and time.monotonic() < end:
            if self._given_up.is_set():
                break
            time.sleep(PING_SECONDS)
        return answers

    def _signal(self, number: signal.Signals) -> bool:
        """Send a signal to the postmaster if it is one that is visible from here."""
        noted = self._pid_file()
        if noted is None or not is_postgres_on(noted.pid, self._cluster.data):
            return False
        with suppress(ProcessLookupError):
            os.kill(noted.pid, number)
        return True

    def _start_error(self, written: int) -> ServerStartError:
        """Read the last fatal line that the server wrote since; such lines carry no rows (see tuning.PRIVATE)."""
        with self._cluster.log.open(errors="replace") as file:
            file.seek(written)
            lines = file.read(MAX_LOG_BYTES).splitlines()
        said = [line for line in lines if "FATAL:" in line or "PANIC:" in line] or lines or ["nothing was said"]
        if "No space left on device" in said[-1]:
            return disk_full(self._cluster.data)
        reason = said[-1].partition(":  ")[2] or said[-1]
        kind = StorageFault if said[-1].endswith(FAULTS_OF_STORAGE) else ServerStartError
        return kind(f"Postgres stopped while it started: {reason} (log: {self._cluster.log})")


def _note(lock: FileLock, launched: RunningServer) -> None:
    text = json.dumps({name: str(value) for name, value in vars(launched).items()})
    os.ftruncate(lock.descriptor, 0)
    os.pwrite(lock.descriptor, text.encode(), 0)


def _open_log(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    return os.fdopen(descriptor, "ab", buffering=0)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _reap() -> None:
    for child in tuple(_children):
        if child.poll() is not None:
            with suppress(ValueError):  # another thread was first
                _children.remove(child)


def is_postgres_on(pid: int, data: Path) -> bool:
    """Return whether a process is Postgres on that data directory; a number may have a new owner by now."""
    if HAS_PROC:
        return _link(pid, "cwd") == str(data) and _program(pid) == "postgres"
    command = output_of("ps", "-o", "command=", "-p", str(pid))
    return "postgres" in command and str(data) in command


def postgres_processes(data: Path, held_file: Path) -> list[int]:
    """List the processes of Postgres on that data directory, orphans of a killed postmaster too.

    Where there is no /proc they are known by `held_file`, which they all keep open.
    """
    if HAS_PROC:
        return [pid for pid in _all_processes() if is_postgres_on(pid, data)]
    others = (int(line) for line in output_of("lsof", "-t", str(held_file)).split() if line.isdigit())
    return [pid for pid in others if "postgres" in output_of("ps", "-o", "comm=", "-p", str(pid))]


def _all_processes() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _program(pid: int) -> str:
    # A program that was upgraded under its process is shown as "postgres (deleted)".
    return Path(_link(pid, "exe").removesuffix(" (deleted)")).name


def _link(pid: int, name: str) -> str:
    try:
        return str((PROC / str(pid) / name).readlink())
    except OSError:  # gone, a zombie, or another user's
        return ""
