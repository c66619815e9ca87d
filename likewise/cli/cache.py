"""`likewise cache`: embed texts ahead of the requests for them, and put their vectors in Redis."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from likewise.apps.checking import parse_json
from likewise.cleaning import cleaned
from likewise.cli.files import LINES, Unreadable, open_regular, why_unreadable
from likewise.cli.models import require_model_files
from likewise.cli.names import refuse_no_tenant
from likewise.cli.opening import open_to_serve
from likewise.cli.running import FAILED, OK, PARTLY, AsJson, ModelOption, command_settings, run
from likewise.cli.terminal import answer, counted, note, note_faults, printable, require_stdin, stdin_batches
from likewise.db import collections
from likewise.db.usage import Bookkeeping
from likewise.embedding.caches.opening import open_redis
from likewise.embedding.caches.redis import RedisCache
from likewise.embedding.embedder import Embedder
from likewise.embedding.loading import ONE_USE_SECONDS
from likewise.embedding.provider import Role
from likewise.errors import Invalid, LikewiseError, Malformed, ModelUnavailable, SettingsError, StartError, Unavailable
from likewise.progress import Report, progress
from likewise.settings import Settings

BATCH = 512
# A Redis that takes nothing for so long is not waited for any more.
WRITE_SECONDS = 15.0
MAX_KEPT_FAULTS = 1_000

cache = typer.Typer()


@dataclass(frozen=True)
class WarmRequest:
    """A file or `-` to warm the cache with, for a tenant, a model and a role; and whether its lines are JSON."""

    file: str
    tenant: str
    model: str | None
    role: Role
    is_jsonl: bool


@dataclass
class WarmOutcome:
    """The counts of lines by what became of them.

    `faults` names the first thousand that were refused, `stopped` says why it ended early.
    """

    lines: int = 0
    known: int = 0
    embedded: int = 0
    refused: int = 0
    not_written: int = 0
    faults: list[str] = field(default_factory=list)
    stopped: str | None = None

    def refuse(self, line: int, why: str) -> None:
        """Leave a line out."""
        self.refused += 1
        if len(self.faults) < MAX_KEPT_FAULTS:
            self.faults.append(f"line {line}: {why}")


@cache.command()
def warm(
    file: Annotated[str, typer.Argument(help="A file with a text a line, or JSONL; - for standard input.")],
    tenant: Annotated[str, typer.Option(help="Whose requests are to find them.")] = "default",
    model: ModelOption = None,
    queries: Annotated[bool, typer.Option("--queries", help="They are queries, not documents.")] = False,
    jsonl: Annotated[
        bool | None, typer.Option("--jsonl/--lines", help="What a line is; absent: by the file's name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Embed texts ahead of the requests for them, and put their vectors in Redis.

    What the cache knows already costs nothing. In JSONL the field `text` of each line is taken.
    """
    require_stdin(file == "-")
    refuse_no_tenant(tenant, "--tenant")
    settings = command_settings()
    if settings.redis_url is None:
        raise SettingsError(
            "What this command puts in memory would end with it. Set LIKEWISE_REDIS_URL to warm a Redis."
        )
    is_jsonl = Path(file).suffix.lower() in LINES if jsonl is None else jsonl
    wanted = WarmRequest(file, tenant, model, "query" if queries else "document", is_jsonl)
    require_model_files(settings, model, quiet=as_json)

    async def work() -> int:
        with progress("Embedding", quiet=as_json) as report:
            done = await warm_redis(settings, wanted, report)
        _print_outcome(done, as_json=as_json)
        if done.refused or done.not_written or done.stopped:
            return PARTLY if done.known + done.embedded - done.not_written > 0 else FAILED
        return OK

    run(lambda _: work())


def _print_outcome(done: WarmOutcome, *, as_json: bool) -> None:
    note_faults(done.faults, done.refused)
    if done.stopped:
        note(f"Stopped before the end. {done.stopped}")
    line = (
        f"{done.known} known, {done.embedded} embedded, {done.refused} refused, from {counted(done.lines, 'line')}; "
        f"{counted(done.not_written, 'vector')} did not reach Redis."
    )
    answer(asdict(done), line, as_json=as_json)


async def warm_redis(settings: Settings, wanted: WarmRequest, report: Report) -> WarmOutcome:
    """Embed what Redis does not know, and see that it gets it; StartError if it, the model or the database is away."""
    redis = open_redis(settings, patient=True)
    assert redis is not None
    embedder = Embedder(settings, cache=redis)
    try:
        if reason := await redis.look():
            raise StartError(f"{reason} See that it runs and that LIKEWISE_REDIS_URL is right.")
        tenant = await _tenant(settings, wanted.tenant)
        try:
            await embedder.opened(wanted.model, patience=ONE_USE_SECONDS)
        except ModelUnavailable as error:
            raise StartError(error.detail) from None
        return await _warm(_Warmer(embedder, redis, tenant, wanted), wanted, report)
    finally:
        await embedder.close()
        await _keep_usage(settings, embedder)


async def _warm(warmer: "_Warmer", wanted: WarmRequest, report: Report) -> WarmOutcome:
    done = warmer.done
    total = None if wanted.file == "-" else await asyncio.to_thread(_count_lines, Path(wanted.file))
    async for lines in stdin_batches(BATCH) if wanted.file == "-" else _of_file(Path(wanted.file)):
        try:
            await warmer.take(lines)
        except Unavailable as error:
            done.stopped = error.detail
        report(done.lines, total)
        if done.stopped:
            break
    return done


class _Warmer:
    """A worker that takes batches of lines, and counts what became of them."""

    def __init__(self, embedder: Embedder, redis: RedisCache, tenant: int, wanted: WarmRequest) -> None:
        self._embedder = embedder
        self._redis = redis
        self._tenant = tenant
        self._wanted = wanted
        self.done = WarmOutcome()

    async def take(self, lines: Sequence[bytes]) -> None:
        """Embed a batch and wait until Redis has it."""
        await self._embed(self._texts(lines))
        self.done.not_written = await self._redis.flush(WRITE_SECONDS) + self._redis.dropped
        if self.done.not_written:
            self.done.stopped = self._redis.fault or "Redis takes vectors too slowly."

    def _texts(self, lines: Sequence[bytes]) -> dict[int, str]:
        """Read the texts of a batch, by the numbers of their lines."""
        texts = {}
        for number, line in enumerate(lines, self.done.lines + 1):
            try:
                texts[number] = cleaned(_of_json(line) if self._wanted.is_jsonl else line.decode().rstrip("\r\n"))
            except UnicodeDecodeError:
                self.done.refuse(number, "It is not UTF-8; convert it first, as iconv does.")
            except LikewiseError as error:
                self.done.refuse(number, error.detail)
        self.done.lines += len(lines)
        return texts

    async def _embed(self, texts: dict[int, str]) -> None:
        """Embed texts; those that cannot be embedded are named and left out."""
        while texts:
            numbers, distinct = list(texts), list(dict.fromkeys(texts.values()))
            try:
                made = await self._embedder.embed(
                    self._tenant, distinct, model=self._wanted.model, role=self._wanted.role, lane="bulk"
                )
            except Invalid as error:
                faults = error.moved("/texts", str).faults
                refused = {distinct[fault.index]: fault.message for fault in faults if fault.index is not None}
                if not refused:
                    raise
                for number in numbers:
                    if texts[number] in refused:
                        self.done.refuse(number, refused[texts.pop(number)])
                continue
            fresh = len(distinct) - int(made.cached.sum())
            self.done.embedded += fresh
            # A line that says what another one says is known by then.
            self.done.known += len(texts) - fresh
            return


async def _tenant(settings: Settings, name: str) -> int:
    """Look up the number of a tenant, which is part of its keys; a cache that all tenants share needs none."""
    if settings.cache_scope == "shared":
        return 0
    async with open_to_serve(settings) as pool:
        return await collections.tenant_named(pool, name)


async def _keep_usage(settings: Settings, embedder: Embedder) -> None:
    """Write down what was used as the tenant's; with a cache that all tenants share it is nobody's."""
    if settings.cache_scope == "tenant" and embedder.ledger:
        async with open_to_serve(settings) as pool:
            await Bookkeeping(pool, embedder.ledger).close()


async def _of_file(path: Path) -> AsyncIterator[list[bytes]]:
    with await asyncio.to_thread(_opened, path) as file:
        while lines := await asyncio.to_thread(lambda: list(islice(file, BATCH))):
            yield lines


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except Unreadable as error:
        why = f"{error}; give others to standard input, with - for the file"
    except OSError as error:
        why = why_unreadable(error)
    raise Invalid(f"{printable(str(path))}: {why}.")


def _count_lines(path: Path) -> int:
    with _opened(path) as file:
        return sum(1 for _ in file)


def _of_json(line: bytes) -> str:
    """Read the field `text` of a line of JSON; an empty line is a blank text."""
    if not line.strip():
        return ""
    try:
        value = parse_json(line)
    except Malformed:
        raise Malformed("It is not valid JSON in UTF-8.") from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise Malformed("It is not a JSON object with a `text`.")
    return text
