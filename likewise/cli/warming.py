"""The work of `likewise cache warm`: lines to texts, texts to vectors, vectors to Redis."""

import asyncio
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from likewise.apps.body import parse_json
from likewise.cleaning import cleaned
from likewise.cli import standard_input
from likewise.cli.opening import opened_to_serve
from likewise.db import collections
from likewise.db.usage import Bookkeeping
from likewise.embedding.caches.opening import open_redis
from likewise.embedding.caches.redis import RedisCache
from likewise.embedding.embedder import Embedder
from likewise.embedding.loading import ONE_USE_SECONDS
from likewise.embedding.provider import Role
from likewise.errors import Invalid, LikewiseError, Malformed, ModelUnavailable, StartError, Unavailable
from likewise.progress import Report
from likewise.settings import Settings

BATCH = 512
# A Redis that takes nothing for so long is not waited for any more.
WRITE_SECONDS = 15.0
MOST_FAULTS = 1_000


@dataclass(frozen=True)
class Work:
    """What is to be done: a file or `-`, for whom, with what model, as what, and whether its lines are JSON."""

    file: str
    tenant: str
    model: str | None
    role: Role
    is_jsonl: bool


@dataclass
class Warmed:
    """What became of the lines. `faults` names the first thousand that were refused, `stopped` why it ended early."""

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
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(f"line {line}: {why}")

    def as_json(self) -> dict[str, Any]:
        """The same for a program."""
        return asdict(self)


async def warm(settings: Settings, work: Work, report: Report) -> Warmed:
    """Embed what Redis does not know, and see that it gets it; StartError if it, the model or the database is away."""
    redis = open_redis(settings, patient=True)
    assert redis is not None
    embedder = Embedder(settings, cache=redis)
    try:
        if reason := await redis.look():
            raise StartError(f"{reason} See that it runs and that LIKEWISE_REDIS_URL is right.")
        tenant = await _tenant(settings, work.tenant)
        try:
            await embedder.opened(work.model, patience=ONE_USE_SECONDS)
        except ModelUnavailable as error:
            raise StartError(error.detail) from None
        return await _warm(_Warmer(embedder, redis, tenant, work), work, report)
    finally:
        await embedder.close()
        await _keep_usage(settings, embedder)


async def _warm(warmer: "_Warmer", work: Work, report: Report) -> Warmed:
    done = warmer.done
    total = None if work.file == "-" else await asyncio.to_thread(_count_lines, Path(work.file))
    async for lines in standard_input.batches(BATCH) if work.file == "-" else _of_file(Path(work.file)):
        try:
            await warmer.take(lines)
        except Unavailable as error:
            done.stopped = error.detail
        report(done.lines, total)
        if done.stopped:
            break
    return done


class _Warmer:
    """Takes batches of lines, and writes down what became of them."""

    def __init__(self, embedder: Embedder, redis: RedisCache, tenant: int, work: Work) -> None:
        self._embedder = embedder
        self._redis = redis
        self._tenant = tenant
        self._work = work
        self.done = Warmed()

    async def take(self, lines: Sequence[bytes]) -> None:
        """Embed a batch and wait until Redis has it."""
        await self._embed(self._texts(lines))
        self.done.not_written = await self._redis.flush(WRITE_SECONDS) + self._redis.dropped
        if self.done.not_written:
            self.done.stopped = self._redis.fault or "Redis takes vectors too slowly."

    def _texts(self, lines: Sequence[bytes]) -> dict[int, str]:
        """The texts of a batch by the numbers of their lines."""
        texts = {}
        for number, line in enumerate(lines, self.done.lines + 1):
            try:
                texts[number] = cleaned(_of_json(line) if self._work.is_jsonl else line.decode().rstrip("\r\n"))
            except UnicodeDecodeError:
                self.done.refuse(number, "It is not UTF-8; convert it first, as iconv does.")
            except LikewiseError as error:
                self.done.refuse(number, error.detail)
        self.done.lines += len(lines)
        return texts

    async def _embed(self, texts: dict[int, str]) -> None:
        """Embed them; those that cannot be are named and left out."""
        while texts:
            numbers, distinct = list(texts), list(dict.fromkeys(texts.values()))
            try:
                made = await self._embedder.embed(
                    self._tenant, distinct, model=self._work.model, role=self._work.role, lane="bulk"
                )
            except Invalid as error:
                refused = {
                    distinct[int(place)]: fault.message
                    for fault in error.faults
                    if (place := fault.pointer.rpartition("/")[2]).isdecimal()
                }
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
    """The number of a tenant, which is part of its keys; where the cache is everybody's the database is not asked."""
    if settings.cache_scope == "shared":
        return 0
    async with opened_to_serve(settings) as pool:
        return await collections.tenant_named(pool, name)


async def _keep_usage(settings: Settings, embedder: Embedder) -> None:
    """What was used is the tenant's; where the cache is everybody's it is nobody's."""
    if settings.cache_scope == "tenant" and embedder.ledger:
        async with opened_to_serve(settings) as pool:
            await Bookkeeping(pool, embedder.ledger).close()


async def _of_file(path: Path) -> AsyncIterator[list[bytes]]:
    with await asyncio.to_thread(_open, path) as file:
        while lines := await asyncio.to_thread(lambda: list(islice(file, BATCH))):
            yield lines


def _open(path: Path) -> BinaryIO:
    # A FIFO would be waited on for ever, so it is not opened before we know what it is.
    if not stat.S_ISREG(path.stat().st_mode):
        raise Invalid("This is not a regular file; give others to standard input, with - for the file.")
    return path.open("rb")


def _count_lines(path: Path) -> int:
    with _open(path) as file:
        return sum(1 for _ in file)


def _of_json(line: bytes) -> str:
    """The field `text` of a line of JSON; an empty line is a blank text."""
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
