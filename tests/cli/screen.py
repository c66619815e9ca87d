"""The program on a terminal."""

import os
import pty
import re
import subprocess

from tests.cli.conftest import PROGRAM
from tests.patience import PATIENCE

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_a_terminal(environment: dict[str, str], *arguments: str) -> str:
    """All that the program writes to its terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment | {"TERM": "xterm", "COLUMNS": "160"},
        start_new_session=True,
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:
        # Linux tells of the other end's closing like this.
        pass
    process.wait(timeout=PATIENCE)
    os.close(leader)
    return shown.decode()


def plain(shown: str) -> str:
    """The same without colours and movements."""
    return _ESCAPES.sub("", shown)
