"""Real implementations for tests: a deterministic provider, and a throw-away Postgres."""

import asyncio
import contextlib
import hashlib
import itertools
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
from psycopg.sql import SQL, Identifier

from likewise.db import migrate, roles
from likewise.db.server import EmbeddedServer, create_database
from likewise.embedding.provider import Matrix, ProviderResult, Role, Vector

_TEMPLATE = "template_likewise"

_WORD = re.compile(r"\w+")


class FakeProvider:
    """Makes unit vectors from hashed words: equal texts have equal vectors, texts that share words are alike.

    A token is a word; two special ones go around each text. The knobs may be turned at any time: `fail` is raised for
    each batch, or for batches with a text that `poison` is true of; `delay` seconds pass before each answer; while
    `gate` is set to an event, answers wait for it; `nan` and `wrong_count` spoil the answer. `calls` has each batch's
    size, in order, and `texts` what was embedded.
    """

    def __init__(
        self,
        dimension: int = 384,
        *,
        max_tokens: int = 256,
        space: str = "fake",
        numerics: str = "fake-1/f32",
        fail: Exception | None = None,
        poison: Callable[[str], bool] | None = None,
        delay: float = 0.0,
        gate: asyncio.Event | None = None,
        nan: bool = False,
        wrong_count: bool = False,
    ) -> None:
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.space = hashlib.sha256(f"{space} {dimension}".encode()).hexdigest()
        self.numerics = numerics
        self.fail = fail
        self.poison = poison
        self.delay = delay
        self.gate = gate
        self.nan = nan
        self.wrong_count = wrong_count
        self.calls: list[int] = []
        self.texts: list[str] = []
        self.closed = False

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """The texts' vectors and counts, or the trouble that was asked for."""
        self.calls.append(len(texts))
        self.texts.extend(texts)
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        if self.poison is not None and any(map(self.poison, texts)):
            raise RuntimeError("poison")
        result = self._result(texts[1:] if self.wrong_count else texts)
        if self.nan:
            result.vectors[:1] = np.nan
        return result

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Words of each text, and two."""
        return [len(_WORD.findall(text)) + 2 for text in texts]

    async def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True

    def _result(self, texts: Sequence[str]) -> ProviderResult:
        spans = [[match.span() for match in _WORD.finditer(text)] for text in texts]
        room = self.max_tokens - 2
        return ProviderResult(
            vectors=self._vectors([text[: _end(text, span, room)] for text, span in zip(texts, spans, strict=True)]),
            tokens=np.array([min(len(span), room) + 2 for span in spans], np.int32),
            truncated=np.array([max(0, len(span) - room) for span in spans], np.int32),
            chars_read=np.array([_end(text, span, room) for text, span in zip(texts, spans, strict=True)], np.int32),
        )

    def _vectors(self, texts: Sequence[str]) -> Matrix:
        return np.array([self._vector(text) for text in texts], np.float32).reshape(len(texts), self.dimension)

    def _vector(self, text: str) -> Vector:
        words = _WORD.findall(text.lower()) or [text]
        total = np.sum([_direction(word, self.dimension) for word in words], axis=0)
        vector: Vector = (total / np.linalg.norm(total)).astype(np.float32)
        return vector


def _end(text: str, spans: Sequence[tuple[int, int]], room: int) -> int:
    """Where reading ends in a text of these words."""
    return spans[room - 1][1] if len(spans) > room else len(text)


def _direction(word: str, dimension: int) -> Vector:
    """A word's own direction: normal numbers from a generator seeded with its hash."""
    seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)


@dataclass(frozen=True)
class DatabaseUrls:
    """One migrated database: as its owner, and as the role that serves."""

    owner: str
    serving: str


class ThrowawayPostgres:
    """A real server in a temporary folder that forgets everything; each database is a copy of a migrated one."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self._numbers = itertools.count()

    async def prepare(self) -> None:
        """Make the database that the others are copies of."""
        await create_database(self.server.superuser_url(), _TEMPLATE)
        await migrate.upgrade(self.server.url("likewise_owner", _TEMPLATE), server_role=roles.SERVER_ROLE)

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[DatabaseUrls]:
        """An empty, migrated database, dropped at the end of the block."""
        name = f"test_{next(self._numbers)}"
        await self._as_superuser(
            SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy OWNER likewise_owner"), name, _TEMPLATE
        )
        await self._as_superuser(SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO likewise_server"), name)
        try:
            yield DatabaseUrls(self.server.url("likewise_owner", name), self.server.url(roles.SERVER_ROLE, name))
        finally:
            await self._as_superuser(SQL("DROP DATABASE {} WITH (FORCE)"), name)

    async def _as_superuser(self, statement: SQL, *names: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.server.superuser_url(), autocommit=True) as connection:
            await connection.execute(statement.format(*map(Identifier, names)))


def _open_folder() -> Path:
    """A temporary folder that others may enter: as root the server runs as another user."""
    folder = Path(tempfile.mkdtemp(prefix="likewise-"))
    folder.chmod(0o755)
    return folder


@contextlib.asynccontextmanager
async def throwaway_postgres() -> AsyncIterator[ThrowawayPostgres]:
    """A Postgres for one run of tests: started in a moment, nothing flushed to disk, gone at the end."""
    folder = _open_folder()
    server = await EmbeddedServer.start(folder, durable=False)
    try:
        postgres = ThrowawayPostgres(server)
        await postgres.prepare()
        yield postgres
    finally:
        await server.close()
        shutil.rmtree(folder, ignore_errors=True)
