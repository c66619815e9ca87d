"""Rotation of the text key: what waits sealed is sealed anew, as the owner, in one transaction."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from os import urandom
from typing import Any

from psycopg.sql import SQL

from likewise.db.pool import Pool, retried
from likewise.db.text_key import RECORDED, TextKeySource, chosen
from likewise.db.transaction import ProgressReport, Row, Tx, table, unreported
from likewise.errors import Conflict, SealBroken, TextKeyUnavailable
from likewise.sealing import KEY_BYTES, Sealing, TextKey, about_collection, about_content, about_job

# A text has 200,000 characters at most, so this takes 160 MB at worst, and mostly a tenth of one.
PORTION = 200

# Whoever writes what is sealed shares it. Meanwhile writes that would seal something are tried again for a second, and
# then are a 503 that can be sent again.
TAKE = SQL("SELECT pg_advisory_xact_lock(7722, 0)")
REPLACE = SQL("""
    INSERT INTO text_key (id) VALUES (%s) ON CONFLICT (only_row) DO UPDATE SET id = excluded.id, since = now()
""")
COUNT = SQL("""
    SELECT (SELECT count(*) FROM collections WHERE terms_key IS NOT NULL)
         + (SELECT count(*) FROM contents WHERE sealed IS NOT NULL)
         + (SELECT count(*) FROM jobs WHERE input <> '')
""")
SET_TERMS_KEY = SQL("UPDATE collections SET terms_key = %s, terms_total = 0, contents_total = 0 WHERE id = %s")
RESET_TOTALS = SQL("UPDATE collection_views SET terms_total = 0, contents_total = 0 WHERE collection = %s")
VIEWS_WITH_WORDS = SQL("SELECT view FROM collection_views WHERE collection = %s AND terms ORDER BY view")
FORGET_WORDS = SQL("TRUNCATE {terms}")
GIVE_UP_CONTENTS = SQL("SELECT fail_contents(%s, 'text_key_lost', false)")
GIVE_UP_TASKS = SQL("""
    UPDATE jobs SET input = '', claim = NULL, updated_at = now(), ended_at = coalesce(ended_at, now()),
           error = CASE WHEN ended_at IS NULL THEN 'text_key_lost' ELSE error END,
           state = CASE WHEN ended_at IS NULL THEN 'FAILED' ELSE state END
    WHERE id = ANY (%s::uuid[])
""")


@dataclass(frozen=True)
class _Sealed:
    """A column that is sealed. Its rows begin with their key and end with what is sealed.

    While the key's lock is held what is sealed may go, and then is NULL or empty; nothing comes, and nothing else
    changes.
    """

    rows: SQL
    hold: SQL
    seal: SQL
    about: Callable[[Row], bytes]
    what: str


COLLECTIONS = _Sealed(
    SQL("SELECT id, tenant, name, terms_key FROM collections WHERE terms_key IS NOT NULL ORDER BY id"),
    SQL("SELECT FROM collections WHERE id = ANY (%s::int[]) ORDER BY id FOR NO KEY UPDATE"),
    SQL("""
        UPDATE collections c SET terms_key = i.sealed FROM unnest(%s::int[], %s::bytea[]) AS i (id, sealed)
        WHERE c.id = i.id
    """),
    lambda row: about_collection(row[1], row[2]),
    "The key of a collection's words",
)
CONTENTS = _Sealed(
    SQL("SELECT pk, tenant, collection, text_hash, sealed FROM contents WHERE sealed IS NOT NULL ORDER BY pk"),
    SQL("SELECT FROM contents WHERE pk = ANY (%s::bigint[]) ORDER BY pk FOR NO KEY UPDATE"),
    SQL("""
        UPDATE contents c SET sealed = i.sealed FROM unnest(%s::bigint[], %s::bytea[]) AS i (pk, sealed)
        WHERE c.pk = i.pk AND c.sealed IS NOT NULL
    """),
    lambda row: about_content(*row[1:4]),
    "A text",
)
TASKS = _Sealed(
    SQL("SELECT id, tenant, input FROM jobs WHERE input <> '' ORDER BY id"),
    SQL("SELECT FROM jobs WHERE id = ANY (%s::uuid[]) ORDER BY id FOR UPDATE"),
    SQL("""
        UPDATE jobs j SET input = i.sealed FROM unnest(%s::uuid[], %s::bytea[]) AS i (id, sealed)
        WHERE j.id = i.id AND j.input <> ''
    """),
    lambda row: about_job(row[1], row[0].bytes),
    "The input of a task",
)


@dataclass(frozen=True)
class SealedCounts:
    """Numbers of texts, of inputs of tasks, and of keys of collections' words."""

    texts: int
    tasks: int
    collections: int


@dataclass(frozen=True)
class RotationOutcome:
    """The numbers of what was sealed anew, and of what could not be opened and was given up."""

    sealed: SealedCounts
    lost: SealedCounts


class TextUnreadable(Conflict):
    """Something that waits sealed has been changed, and does not open."""

    code = "text_unreadable"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} that was sealed has been changed and does not open. `--lost` gives up what does not open: restore "
            "the database first if you have a backup."
        )


class TextKeyLost(TextKeyUnavailable):
    """Something waits sealed with a key that is not here. `--lost` gives it up: its texts are lost then."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


async def rotate(
    pool: Pool, source: TextKeySource, *, lost: bool = False, report: ProgressReport | None = None
) -> RotationOutcome:
    """Seal everything that waits with a new key, which is the database's from then on.

    Args:
        pool: as the owner.
        lost: give up what cannot be opened, instead of changing nothing.
        report: is told how many of how many are sealed anew.

    Raises:
        WrongTextKey: the present key is not at hand, or the new one is not.
        TextKeyLost, TextUnreadable: something cannot be opened.
    """
    with source.alone() as alone:
        if not alone:
            raise Conflict("Another process is changing the text key. Wait until it has.", code="text_key_changing")
        new, rotated = await retried(lambda: _committed(pool, source, lost=lost, report=report))
        source.settle(new.id, even_broken=lost)
        return rotated


async def _committed(
    pool: Pool, source: TextKeySource, *, lost: bool, report: ProgressReport | None
) -> tuple[TextKey, RotationOutcome]:
    async with pool.nobody() as tx:
        # From here on the recorded key stays the same, whatever becomes of those who were changing it before.
        await tx.execute(TAKE)
        row = await tx.row(RECORDED)
        recorded = None if row is None else row[0]
        old = source.keys(even_broken=lost)
        if recorded is not None and not lost:
            chosen(source, old, recorded)
        new = source.make_next(recorded, even_broken=lost)
        rotation = _Rotation(tx, Sealing([new, *old]), lost=lost, report=report)
        rotated = await rotation.run()
        await tx.execute(REPLACE, [new.id])
    return new, rotated


class _Rotation:
    """The work of one rotation's transaction."""

    def __init__(self, tx: Tx, sealing: Sealing, *, lost: bool, report: ProgressReport | None) -> None:
        self._tx = tx
        self._sealing = sealing
        self._lost = lost
        self._report = report or unreported
        self._done = self._total = 0

    async def run(self) -> RotationOutcome:
        """Seal everything anew, in the order in which all take their locks: collections, contents, jobs, terms."""
        self._total = await self._tx.number(COUNT)
        collections, wordless = await self._all(COLLECTIONS)
        texts, lost_texts = await self._all(CONTENTS)
        tasks, lost_tasks = await self._all(TASKS)
        if lost_texts:
            await self._tx.execute(GIVE_UP_CONTENTS, [[row[0] for row in lost_texts]])
        if lost_tasks:
            await self._tx.execute(GIVE_UP_TASKS, [[row[0] for row in lost_tasks]])
        for collection in wordless:
            await self._begin_words_anew(collection)
        return RotationOutcome(
            SealedCounts(texts, tasks, collections), SealedCounts(len(lost_texts), len(lost_tasks), len(wordless))
        )

    async def _all(self, column: _Sealed) -> tuple[int, list[Row]]:
        """Seal a column anew; return how many, and the rows that cannot be opened, without what is sealed."""
        count, lost = 0, []
        async for rows in _portions(self._tx, column.rows):
            keys, anew = [], []
            for row in rows:
                about = column.about(row)
                try:
                    plain = self._sealing.unseal_bytes(row[-1], about)
                except (TextKeyUnavailable, SealBroken) as error:
                    if not self._lost:
                        raise (
                            TextKeyLost() if isinstance(error, TextKeyUnavailable) else TextUnreadable(column.what)
                        ) from None
                    lost.append(row[:-1])
                    continue
                keys.append(row[0])
                anew.append(self._sealing.seal_bytes(plain, about))
            await self._tx.together((column.hold, [[row[0] for row in rows]]), (column.seal, [keys, anew]))
            count += len(keys)
            self._done += len(rows)
            self._report(self._done, self._total)
        return count, lost

    async def _begin_words_anew(self, collection: Row) -> None:
        """Empty the words of a collection whose key is lost: what its terms stand for cannot be told any more."""
        number, tenant, name = collection
        sealed = self._sealing.seal_bytes(urandom(KEY_BYTES), about_collection(tenant, name))
        await self._tx.execute(SET_TERMS_KEY, [sealed, number])
        await self._tx.execute(RESET_TOTALS, [number])
        for view in (0, *await self._tx.column(VIEWS_WITH_WORDS, [number])):
            await self._tx.execute(FORGET_WORDS.format(terms=table("terms", number, view)))


async def _portions(tx: Tx, rows: SQL) -> AsyncIterator[Sequence[Any]]:
    """Yield the rows of a question, some at a time; as of its beginning, whatever is written meanwhile."""
    async with tx.connection.cursor(name="sealed") as cursor:
        await cursor.execute(rows)
        while portion := await cursor.fetchmany(PORTION):
            yield portion
