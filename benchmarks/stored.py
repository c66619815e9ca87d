"""A corpus stored on a server: its records over HTTP, its vectors as the owner, and what the owner can see of it."""

import asyncio
import http.client
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import orjson
from pgvector import HalfVector
from psycopg import AsyncConnection
from psycopg.sql import SQL

from benchmarks.corpora import Corpus, Halves
from benchmarks.surroundings import MODELS_FOLDER
from likewise.db.maintenance import MAX_SCANNED
from likewise.db.pool import settle
from likewise.db.transaction import Row, table
from likewise.testing import LiveServer

NAME = "texts"
INDEXED = ["share", "cluster"]
BATCH = 500
LONGEST_BUILD_SECONDS = 3_600.0

NUMBERS = SQL("""
    SELECT c.id, g.id, c.contents_total, g.background
    FROM collections c JOIN generations g ON g.id = c.active_generation WHERE c.name = %s
""")
PLACES = SQL("SELECT content, id FROM records WHERE collection = %s ORDER BY content")
ADD_VECTORS = SQL("COPY {vectors} (content, embedding, tokens, truncated, chars_read) FROM STDIN WITH (FORMAT binary)")
DROP_WAITING = SQL("DELETE FROM waiting WHERE generation = %s")
# This session's inserts would else be counted once more after the vacuum has counted the rows.
COUNTED = SQL("SELECT pg_stat_force_next_flush()")
VACUUM = SQL("VACUUM (ANALYZE) contents, records, record_fields, waiting, {vectors}, {terms}")
STATE = SQL("SELECT index_state, background_from FROM generations WHERE id = %s")
# Vectors that were deleted since the index was built, as maintenance counts them.
DEAD = SQL("""
    SELECT coalesce(s.n_tup_del, 0) - g.index_deletes FROM generations g
    LEFT JOIN pg_stat_user_tables s ON s.relid = {vectors}::regclass WHERE g.id = %s
""")
# The vectors' own index, whatever it is called: its identity changes when it is built anew.
SIZES = SQL("""
    SELECT x.indexrelid::int, coalesce(pg_relation_size(x.indexrelid), 0), pg_relation_size({vectors}::regclass),
           pg_total_relation_size({terms}::regclass),
           pg_total_relation_size('records') + pg_total_relation_size('contents')
    FROM (VALUES (1)) one LEFT JOIN (
        SELECT i.indexrelid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
        WHERE i.indrelid = {vectors}::regclass AND a.amname = 'hnsw' AND i.indisvalid
    ) x ON true ORDER BY x.indexrelid DESC NULLS LAST LIMIT 1
""")


@dataclass(frozen=True)
class Sizes:
    """Bytes of the vectors' index and table, of the terms with their index, and of records and contents."""

    index_id: int | None
    index: int
    vectors: int
    terms: int
    rows: int

    def __str__(self) -> str:
        names = {"index": self.index, "vectors": self.vectors, "terms": self.terms, "records and contents": self.rows}
        return ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in names.items())


class Client:
    """One client of the HTTP API, on one connection that stays open."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def post(self, path: str, body: object) -> bytes:
        """The body of the answer to a POST on the collection; RuntimeError if it is none of 2xx."""
        return self._ask("POST", path, orjson.dumps(body))

    def delete(self, record: str) -> None:
        """Delete one record."""
        self._ask("DELETE", f"/{NAME}/records/{quote(record)}")

    def stats(self) -> dict[str, Any]:
        """What the collection holds."""
        found: dict[str, Any] = orjson.loads(self._ask("GET", f"/{NAME}/stats"))
        return found

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        try:
            answer = self._sent(method, path, body)
        except (http.client.RemoteDisconnected, ConnectionError):
            # The server lets go of connections that were idle while recall was computed here.
            self._connection.close()
            answer = self._sent(method, path, body)
        read = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path} answered {answer.status}: {read[:300]!r}")
        return read

    def _sent(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"} if body else {}
        self._connection.request(method, f"/api/v1/collections{path}", body, headers)
        return self._connection.getresponse()


class ProcessorTime:
    """What a server and its Postgres use: it tells more than the clock while the machine has other work."""

    def __init__(self, server: LiveServer) -> None:
        self._server, self._postmaster = server.pid, server.postmaster_pid()

    def seconds(self) -> float:
        """Seconds of processor time so far, over all their processes; 0 where there is no /proc."""
        try:
            backends = Path(f"/proc/{self._postmaster}/task/{self._postmaster}/children").read_text().split()
        except OSError:
            return 0.0
        ticks = [*_ticks(self._server)[:2], *_ticks(self._postmaster), *(sum(_ticks(int(one))[:2]) for one in backends)]
        return sum(ticks) / os.sysconf("SC_CLK_TCK")


def _ticks(process: int) -> list[int]:
    """Of a process and of its children that have ended: user, system, user, system; none of one that has gone."""
    try:
        told = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return [0]
    return [int(one) for one in told.rpartition(")")[2].split()[11:15]]


@dataclass(frozen=True)
class Stored:
    """The collection as the owner of its tables sees it."""

    owner: AsyncConnection[Row]
    collection: int
    generation: int

    @classmethod
    async def named(cls, owner: AsyncConnection[Row]) -> Self:
        """The one collection of the benchmark."""
        row = await (await owner.execute(NUMBERS, [NAME])).fetchone()
        assert row is not None
        return cls(owner, row[0], row[1])

    async def totals(self) -> tuple[int, float]:
        """How many contents lexical search reckons with, and the background of fusion."""
        row = await (await self.owner.execute(NUMBERS, [NAME])).fetchone()
        assert row is not None
        return int(row[2]), float(row[3])

    async def places(self) -> dict[int, int]:
        """The place in the corpus of each content."""
        rows = await (await self.owner.execute(PLACES, [self.collection])).fetchall()
        return {int(content): int(id_) for content, id_ in rows}

    async def sizes(self) -> Sizes:
        """How large its parts are on disk."""
        names = {"vectors": f"likewise.vec_{self.generation}", "terms": f"likewise.terms_{self.collection}"}
        row = await (await self.owner.execute(SIZES.format(**names))).fetchone()
        assert row is not None
        return Sizes(*row)

    async def dead(self) -> int:
        """How many vectors were deleted since the index was built."""
        statement = DEAD.format(vectors=f"likewise.vec_{self.generation}")
        row = await (await self.owner.execute(statement, [self.generation])).fetchone()
        assert row is not None
        return int(row[0])

    async def add_vectors(self, vectors: Halves) -> None:
        """Give each content its vector, so that nothing waits for the model."""
        places = await self.places()
        statement = ADD_VECTORS.format(vectors=table("vec", self.generation))
        async with self.owner.transaction(), self.owner.cursor() as cursor:
            async with cursor.copy(statement) as copy:
                copy.set_types(["int8", "halfvec", "int4", "int4", "int4"])
                for content, place in places.items():
                    await copy.write_row((content, HalfVector(vectors[place]), 0, 0, 0))
            await cursor.execute(DROP_WAITING, [self.generation])

    async def vacuum(self) -> None:
        """What autovacuum does within minutes of so many inserts, now, so that it does not run beside the measuring."""
        tables = {"vectors": table("vec", self.generation), "terms": table("terms", self.collection)}
        await self.owner.execute(COUNTED)
        await self.owner.execute(VACUUM.format(**tables))

    async def until_indexed(self, contents: int, dimension: int) -> float:
        """Seconds that the index took to build, as far as it was seen; 0 where none is due."""
        begun = None
        async with asyncio.timeout(LONGEST_BUILD_SECONDS):
            while True:
                row = await (await self.owner.execute(STATE, [self.generation])).fetchone()
                assert row is not None
                state, measured = row[0], row[1] > 0
                if state == "building" and begun is None:
                    begun = time.perf_counter()
                if measured and (state == "ready" or (state == "none" and contents * dimension <= MAX_SCANNED)):
                    return time.perf_counter() - begun if begun is not None else 0.0
                await asyncio.sleep(0.1)


@asynccontextmanager
async def serving(folder: Path, *, worker: bool = True) -> AsyncIterator[LiveServer]:
    """A server on a data folder. Vectors of queries are not remembered: each is embedded when it is asked."""
    environment = {
        "LIKEWISE_MODELS_DIR": str(MODELS_FOLDER),
        "LIKEWISE_CACHE_BYTES": "0",
        "LIKEWISE_EMBED_WORKER": str(worker).lower(),
    }
    async with LiveServer(folder, environment).running() as server:
        yield server


@asynccontextmanager
async def as_owner(folder: Path) -> AsyncIterator[AsyncConnection[Row]]:
    """A connection to the server's Postgres as the owner of the tables."""
    socket_folder = (folder / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[4]
    where = urlencode({"host": socket_folder, "port": "5432", "user": "likewise_owner"})
    url = f"postgresql:///likewise?{where}"
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        await settle(connection)
        yield connection


async def store(folder: Path, corpus: Corpus) -> None:
    """Store a corpus in a new collection: texts and fields over HTTP, vectors as they were computed before."""
    async with serving(folder, worker=False) as server, as_owner(folder) as owner:
        client = Client(server.url)
        client.post("", {"name": NAME, "policy": {"indexed": INDEXED}})
        started = time.perf_counter()
        add(client, corpus, corpus.texts, 0)
        taken = time.perf_counter() - started
        print(f"stored {len(corpus)} records over HTTP in {taken:.0f} s ({len(corpus) / taken:.0f}/s), without vectors")
        stored = await Stored.named(owner)
        started = time.perf_counter()
        await stored.add_vectors(corpus.vectors)
        print(f"the vectors, computed before, were copied in by the owner in {time.perf_counter() - started:.0f} s")
        await stored.vacuum()
        client.close()


def add(client: Client, corpus: Corpus, texts: Sequence[str], first: int) -> None:
    """Store texts as records whose ids count from `first`."""
    for start in range(0, len(texts), BATCH):
        records = [
            {"id": str(place), "text": text, "payload": payload(corpus, place)}
            for place, text in enumerate(texts[start : start + BATCH], first + start)
        ]
        client.post(f"/{NAME}/records", records)


def payload(corpus: Corpus, place: int) -> dict[str, int]:
    """The fields that filters ask for; those of later records are of earlier ones."""
    return {"share": int(corpus.share[place % len(corpus)]), "cluster": int(corpus.cluster[place % len(corpus)])}
