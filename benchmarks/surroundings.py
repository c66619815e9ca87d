"""What the benchmarks stand on: the data, the model's files, a fresh server, and the machine."""

import asyncio
import gzip
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from likewise.testing import LiveServer, open_folder

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODELS_FOLDER = Path(os.environ.get("TEST_MODELS_DIR", Path.home() / ".cache" / "likewise-tests" / "models"))


def lines(file: Path) -> list[dict[str, Any]]:
    """A packed JSONL file."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        return [json.loads(line) for line in opened]


@asynccontextmanager
async def fresh_server() -> AsyncIterator[LiveServer]:
    """A server with an empty database, gone with all its data at the end of the block."""
    folder = open_folder()
    try:
        async with LiveServer(folder, {"LIKEWISE_MODELS_DIR": str(MODELS_FOLDER)}).running() as server:
            yield server
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def machine(folder: Path | None = None) -> str:
    """The processor, its cores, and the time that one flush to disk takes, in a folder: what figures depend on."""
    flush = f"one flush of 8 KiB {flush_milliseconds(folder):.2f} ms"
    return f"{processor()}, {os.cpu_count()} cores; {flush}; Python {platform.python_version()}"


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")), "?")


def flush_milliseconds(folder: Path | None = None, times: int = 50) -> float:
    """The median time of writing 8 KiB over what is there and flushing it, as a commit does; in the data's folder."""
    flush = getattr(os, "fdatasync", os.fsync)
    taken = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(times + 1):
            started = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 8192, 0)
            flush(file.fileno())
            taken.append(time.perf_counter() - started)
    # The first one makes the file longer.
    return sorted(taken[1:])[times // 2] * 1000
