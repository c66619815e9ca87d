"""The program in a process of its own for each command, forked from one that has imported it already."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Self

import orjson

# Each message is one byte, with the command's standard streams and a file that says what to run.
FORKING = """
import os, random, socket, sys
import orjson
import likewise.cli.serve
from likewise.cli.main import run

door = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, files, _, _ = socket.recv_fds(door, 1, 4)
    if not message:
        sys.exit()
    child = os.fork()
    if child == 0:
        break
    for file in files:
        os.close(file)
    door.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())

door.close()
for stream, file in enumerate(files[:3]):
    os.dup2(file, stream)
with open(files[3], "rb") as asked:
    command = orjson.loads(asked.read())
for file in files[:3]:
    os.close(file)
os.environ.clear()
os.environ.update(command["environment"])
sys.argv = ["-c", *command["arguments"]]
random.seed()
run()
"""


class WarmProgram:
    """`likewise` in one folder and one environment; a context that ends with its process."""

    def __init__(self, environment: Mapping[str, str], folder: Path, *, timeout: float) -> None:
        self._environment, self._folder, self._timeout = environment, folder, timeout

    def __enter__(self) -> Self:
        self._door, theirs = socket.socketpair()
        self._door.settimeout(self._timeout)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", FORKING, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=dict(self._environment),
                cwd=self._folder,
                process_group=0,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._door.close()
        self._process.wait()

    def run(
        self, arguments: Sequence[str], input: str, variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end, as `subprocess.run` does; TimeoutError if it takes too long."""
        command = {"arguments": arguments, "environment": {**self._environment, **variables}}
        with ExitStack() as stack:
            out, err, asked = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            asked.write(orjson.dumps(command))
            asked.seek(0)
            reading, writing = os.pipe()
            socket.send_fds(self._door, [b"."], [reading, out.fileno(), err.fileno(), asked.fileno()])
            os.close(reading)
            feeding = Thread(target=_feed, args=(writing, input.encode()))
            feeding.start()
            try:
                code = int(self._door.recv(16))
            except TimeoutError:
                os.killpg(self._process.pid, 9)
                raise
            finally:
                feeding.join()
            told = []
            for stream in (out, err):
                stream.seek(0)
                told.append(stream.read().decode())
        return subprocess.CompletedProcess(arguments, code, told[0], told[1])


def _feed(writing: int, content: bytes) -> None:
    """Write standard input; a command need not read it."""
    try:
        with os.fdopen(writing, "wb") as stream:
            stream.write(content)
    except BrokenPipeError:
        pass
