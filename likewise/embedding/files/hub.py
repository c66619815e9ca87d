"""The Hugging Face hub and the cache that its own programs keep, by plain file names and plain GETs."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import httpx2

from likewise.embedding.files.folder import OPTIONAL, REQUIRED, module_files
from likewise.embedding.models import ModelSpec
from likewise.errors import ModelUnavailable
from likewise.machine import home_folder
from likewise.progress import Report

CONTACT_SECONDS = 5.0  # all that an unreachable hub may cost
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
# 2 s to connect, 20 s without a byte
_TIMEOUT = httpx2.Timeout(20.0, connect=2.0)

T = TypeVar("T")


def cache_folders(spec: ModelSpec) -> list[Path]:
    """Return the model's folders in the hub's own cache: the snapshot of `main`, then the others, newest first."""
    root = _cache_root()
    if root is None:
        return []
    base = root / ("models--" + spec.hub_id.replace("/", "--"))
    snapshots = base / "snapshots"
    try:
        main = [snapshots / (base / "refs" / "main").read_text().strip()]
    except OSError:
        main = []
    try:
        others = sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        others = []
    return list(dict.fromkeys([*main, *others])) or [snapshots]


def download(spec: ModelSpec, into: Path, report: Report) -> None:
    """Fetch the model's files into a folder; ModelUnavailable within 5 s if the hub does not answer."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        raise ModelUnavailable("not to be fetched from the hub, as HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    base = f"{endpoint}/{spec.hub_id}/resolve/main/"
    config = _first_contact(base + "config.json")
    (into / "config.json").write_bytes(config)
    with httpx2.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
        try:
            for name in OPTIONAL:
                _get(client, base + name, into / name, False, report)
            for name, required in [*module_files(into), *((name, True) for name in REQUIRED[1:])]:
                _get(client, base + name, into / name, required, report)
        except httpx2.HTTPError as error:
            raise ModelUnavailable(f"not to be fetched from {endpoint} ({type(error).__name__})") from error


def _cache_root() -> Path | None:
    """Find the folder of the hub's own programs; a user without a home folder has none."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    home = home_folder()
    shared = os.environ.get("XDG_CACHE_HOME") or (home and home / ".cache")
    return Path(shared) / "huggingface" / "hub" if shared else None


def _first_contact(url: str) -> bytes:
    """Get the first small file in a thread of its own: looking up a host's name knows no time limit."""

    def ask() -> bytes:
        with httpx2.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
            return client.get(url).raise_for_status().content

    try:
        return in_daemon_thread("likewise-hub", ask).result(CONTACT_SECONDS)
    except TimeoutError:
        raise ModelUnavailable("not to be fetched from the hub, which does not answer") from None
    except Exception as error:
        raise ModelUnavailable(f"not to be fetched from the hub ({type(error).__name__})") from error


def in_daemon_thread(name: str, work: Callable[[], T]) -> Future[T]:
    """Do work in a thread that nobody has to wait for when the process ends."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - it is raised on the other side
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _get(client: httpx2.Client, url: str, to: Path, required: bool, report: Report) -> None:
    with client.stream("GET", url) as response:
        if response.status_code == 404 and not required:
            return
        response.raise_for_status()
        to.parent.mkdir(parents=True, exist_ok=True)
        length = response.headers.get("content-length")
        total = int(length) if length and length.isdigit() and "content-encoding" not in response.headers else None
        done = 0
        with to.open("wb") as file:
            for chunk in response.iter_bytes(1 << 20):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
    if total is not None and done != total:
        raise ModelUnavailable("not to be fetched from the hub, which sent a part only")
