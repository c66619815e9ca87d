"""A Likewise process of its own with an embedded Postgres, as a user of choice, for tests to talk to and to kill."""

import atexit
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE

IS_ROOT = os.geteuid() == 0
# Everything is imported before the user changes: a plain user may not be able to read this Python's own files.
PROGRAM = """
import asyncio, concurrent.futures.thread, json, os, pathlib, signal, stringprep, encodings.idna, sys
import psycopg
from likewise.postgres.server import EmbeddedServer
from likewise.errors import ServerStartError

# A run of the tests in the background hands down that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, uid, gid, durable = sys.argv[1:]
if uid:
    os.setgroups([]); os.setgid(int(gid)); os.setuid(int(uid))

async def one(url, statement):
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(statement)
        return (await cursor.fetchone())[0] if cursor.description else None

async def answer(server, words):
    match words:
        case ["facts"]:
            return {"url": server.url(), "version": server.version, "binaries": str(server.binaries),
                    "pid": int((server.data_directory / "postmaster.pid").read_text().split()[0])}
        case ["sql", *statement]:
            return await one(server.superuser_url("likewise"), " ".join(statement))
        case ["close"]:
            await server.close()

async def main():
    try:
        server = await EmbeddedServer.start(pathlib.Path(folder), durable=bool(durable))
    except ServerStartError as error:
        print(json.dumps({"error": error.detail}), flush=True)
        return
    print(json.dumps({"started": os.getpid()}), flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        try:
            said = await answer(server, line.decode().split())
        except psycopg.Error as error:
            said = {"error": type(error).__name__}
        print(json.dumps(said), flush=True)
    if "leave" not in os.environ:
        await server.close()

asyncio.run(main())
"""


class LikewiseProcess:
    """One process with one EmbeddedServer; it closes it when its input ends, or only exits with `leave`."""

    def __init__(
        self,
        folder: Path,
        user: str | None = None,
        *,
        durable: bool = False,
        leave: bool = False,
        uid: int | None = None,
    ) -> None:
        entry = pwd.getpwnam(user) if user and IS_ROOT and user != "root" else None
        identity = [str(entry.pw_uid), str(entry.pw_gid)] if entry else [str(uid or ""), str(uid or "")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), *identity, "yes" if durable else ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                **({"leave": "1"} if leave else {}),
            },
        )

    def said(self) -> Any:
        """The next thing that the process says."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert readable, "the process says nothing"
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        return json.loads(line)

    def started(self) -> "LikewiseProcess":
        """Wait until it has its server."""
        said = self.said()
        assert "started" in said, said
        return self

    def ask(self, *words: object) -> Any:
        """Tell it something and take its answer."""
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)
        return self.said()

    def facts(self) -> dict[str, object]:
        """What its server says of itself."""
        facts = self.ask("facts")
        assert isinstance(facts, dict)
        return facts

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it alone and wait for its end."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE)

    def end(self) -> None:
        """Close its input and wait until it has left."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
        self.process.wait(PATIENCE)


@contextmanager
def scratch_folder(user: str | None = None) -> Iterator[Path]:
    """A folder that any user can reach, which pytest's own are not for root; `user` owns it."""
    folder = Path(tempfile.mkdtemp(prefix="lw-", dir=_fastest_place())).resolve()
    folder.chmod(0o755)
    if user and user != "root" and IS_ROOT:
        shutil.chown(folder, user)
    try:
        yield folder
    finally:
        end_servers(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def made_folder(user: str | None = None) -> Iterator[Path]:
    """The same with a cluster that was made before and stopped, which saves making one."""
    with scratch_folder(user) as folder:
        subprocess.run(["cp", "-a", _template(user) / "postgres", folder], check=True)
        yield folder


@cache
def _template(user: str | None) -> Path:
    folders = ExitStack()
    atexit.register(folders.close)
    template = folders.enter_context(scratch_folder(user))
    LikewiseProcess(template, user).started().end()
    return template


def _fastest_place() -> str:
    """Memory, where programs may run from it; making a cluster takes 0.3 s there and up to 1.5 s on a slow disk."""
    place = "/dev/shm"
    if not Path(place).is_dir():
        return "/tmp"
    state = os.statvfs(place)
    return "/tmp" if state.f_flag & os.ST_NOEXEC or state.f_bavail * state.f_frsize < 2**31 else place


def end_servers(folder: Path) -> None:
    """End what a test left running below that folder; asked first, because a killed server leaves shared memory."""
    for request in (signal.SIGQUIT, signal.SIGKILL):
        for pid in servers_below(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, request)
        if eventually(lambda: not servers_below(folder), 3):
            return


def servers_below(folder: Path) -> list[int]:
    """The processes of Postgres that work below a folder."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_server(entry, folder)]


def _is_server(entry: Path, folder: Path) -> bool:
    try:
        program, place = (entry / "exe").readlink().name, (entry / "cwd").readlink()
    except OSError:
        return False
    return program.startswith("postgres") and place.is_relative_to(folder)


def lives(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
