"""Collections and their generations."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import orjson
from cachetools import LRUCache
from numpy.typing import NDArray
from psycopg import Error
from psycopg.sql import SQL

from likewise.cleaning import storable
from likewise.db.failures import TOO_MANY, UNIQUE
from likewise.db.pool import Pool
from likewise.db.text_key import TextKeys
from likewise.db.transaction import Tx
from likewise.errors import Conflict, Invalid, NotFound
from likewise.kind import FIRST_VIEW, Policy
from likewise.sealing import KEY_BYTES, Sealing, about_collection

# Each collection has tables of its own, and Postgres slows down at some ten thousand of them.
MAX_COLLECTIONS = 100
# A collection's row is looked up anew for writing after so long; its totals of terms may be older by that.
RECENT_SECONDS = 1.0
MAX_RECENT = 10_000

GenerationState = Literal["building", "active", "retired"]

TENANT_NAMED = SQL("SELECT tenant_named(%s)")
MAKE = SQL("SELECT make_collection(%s, %s, %s, %s, %s, %s, %s, %s)")
SET_TERMS_KEY = SQL("UPDATE collections SET terms_key = %s WHERE id = %s")
DROP = SQL("SELECT drop_collection(%s)")
# Writers share a collection; making, switching and retiring a generation, and dropping, exclude them. So does a writer
# that others were in the way of: alone it cannot fail again.
SHARE = SQL("SELECT pg_advisory_xact_lock_shared(7719, %s)")
LOCK = SQL("SELECT lock_collection(%s)")
TEXT_HASHES = SQL("SELECT text_hash FROM contents WHERE collection = %s LIMIT %s")
# Of a collection that is dropped so many texts are told one by one: some 6 MB.
MAX_HASHES = 100_000

GENERATION_COLUMNS = SQL("""
    g.id, g.model, g.dimension, g.space, g.numerics, g.probe, g.background, g.state, g.index_state
""")
COLUMNS = SQL("""
    c.id, c.tenant, c.name, c.kind, c.analyzer, c.policy, c.terms_total, c.contents_total, c.created_at,
    {generation}, c.terms_key, beside.views
""").format(generation=GENERATION_COLUMNS)
# The views beside the first, each with its active generation if it has vectors; null for most collections.
BESIDE = SQL("""
    LEFT JOIN LATERAL (
        SELECT array_agg(to_jsonb(v) || jsonb_build_object('generation', CASE WHEN g.id IS NOT NULL THEN
                   jsonb_build_array({generation}) END) ORDER BY v.view) AS views
        FROM collection_views v
        LEFT JOIN generations g ON g.collection = v.collection AND g.view = v.view AND g.state = 'active'
        WHERE v.collection = c.id
    ) beside ON true
""").format(generation=GENERATION_COLUMNS)
BY_NAME = SQL("""
    SELECT {columns} FROM collections c JOIN generations g ON g.id = c.active_generation {beside} WHERE c.name = %s
""").format(columns=COLUMNS, beside=BESIDE)
LIST = SQL("""
    SELECT {columns} FROM collections c JOIN generations g ON g.id = c.active_generation {beside}
    WHERE c.name > %s ORDER BY c.name LIMIT %s
""").format(columns=COLUMNS, beside=BESIDE)
GENERATION = SQL("""
    SELECT {generation}, g.collection FROM generations g WHERE g.id = %s
""").format(generation=GENERATION_COLUMNS)
# Whoever waits for a table's exclusive lock holds up all its readers; an index being built keeps it for minutes.
PATIENCE = SQL("SELECT set_config('lock_timeout', '3s', true)")
# Those that new contents of their view must get a vector in.
LIVE_GENERATIONS = SQL(
    "SELECT id, view, model FROM generations WHERE collection = %s AND state <> 'retired' ORDER BY id"
)
# Retired ones included: they keep their vectors until they are dropped.
ALL_GENERATIONS = SQL("SELECT id FROM generations WHERE collection = %s")
ADOPT = SQL("UPDATE generations SET space = %s, numerics = %s, probe = %s WHERE id = %s AND space IS NULL")
SPACES = SQL("SELECT space, dimension, probe FROM spaces_of_model(%s)")
# What goes takes the average with it, whatever its own length was: only its text tells that, and may not be kept.
ADD_TERMS = SQL("""
    UPDATE {totals} c
    SET terms_total = CASE WHEN i.contents > i.gone THEN i.terms * (i.contents - i.gone) / i.contents ELSE 0 END,
        contents_total = greatest(0, i.contents - i.gone)
    FROM (SELECT terms_total::numeric + %(terms)s AS terms, contents_total + %(contents)s AS contents,
                 %(gone)s::bigint AS gone
          FROM {totals} c WHERE {one} FOR UPDATE) i
    WHERE {one}
""")
ADD_TERMS_OF_FIRST = ADD_TERMS.format(totals=SQL("collections"), one=SQL("c.id = %(collection)s"))
ADD_TERMS_OF_VIEW = ADD_TERMS.format(
    totals=SQL("collection_views"), one=SQL("c.collection = %(collection)s AND c.view = %(view)s")
)


@dataclass(frozen=True)
class Generation:
    """One vector space of a collection. `space`, `numerics` and `probe` are None until its first vector."""

    id: int
    model: str
    dimension: int
    space: str | None
    numerics: str | None
    probe: NDArray[np.float32] | None
    background: float
    state: GenerationState
    index_state: Literal["none", "building", "ready"]

    @property
    def is_made(self) -> bool:
        """True if its vectors are made from records, and no model embeds them."""
        return not self.model


@dataclass(frozen=True)
class ViewRow:
    """One view of a collection, with the generation that answers for it, if it has vectors.

    `number` is 0 for the first; `terms` says whether it has a table of words, whose totals weigh them.
    """

    number: int
    name: str
    terms: bool
    terms_total: int
    contents_total: int
    generation: Generation | None


@dataclass(frozen=True)
class StoredSpace:
    """The space that stored vectors are of, and the vectors of the probe's texts in it, float32 (8, d)."""

    space: str
    dimension: int
    probe: NDArray[np.float32]


@dataclass(frozen=True)
class CollectionRow:
    """One collection, with the generation that answers for it.

    `sealed_terms_key` is what its words are hashed with, where it keeps them and no texts.
    """

    id: int
    tenant: int
    name: str
    kind: str
    analyzer: str
    policy: Policy
    terms_total: int
    contents_total: int
    created_at: datetime
    active: Generation
    sealed_terms_key: bytes | None = None
    beside: tuple[ViewRow, ...] = ()

    @property
    def views(self) -> tuple[ViewRow, ...]:
        """All views, the first of which is kept in the collection's own row."""
        totals = self.terms_total, self.contents_total
        return (ViewRow(0, FIRST_VIEW, self.policy.keep_terms, *totals, self.active), *self.beside)

    def view(self, name: str) -> ViewRow:
        """Return the view of this name; Invalid if the collection has none."""
        for view in self.views:
            if view.name == name:
                return view
        raise Invalid.at("/view", f"The collection has no view of this name. It has {self._names}.", "invalid_value")

    @property
    def _names(self) -> str:
        return ", ".join(view.name for view in self.views)

    def terms_key(self, sealing: Sealing) -> bytes | None:
        """Return the key that its words are hashed with; None where anybody may know them."""
        if self.sealed_terms_key is None:
            return None
        return sealing.unseal_bytes(self.sealed_terms_key, about_collection(self.tenant, self.name))


@dataclass(frozen=True)
class NewView:
    """A view beside the first that a collection is made with.

    `model` is empty where vectors are made from records, in the `space` given, and None where there are none.
    """

    name: str
    terms: bool
    model: str | None = None
    dimension: int | None = None
    space: str | None = None


async def tenant_named(pool: Pool, name: str) -> int:
    """Return the id of a tenant; it appears when it is first named."""
    return await pool.number(TENANT_NAMED, name)


async def make(
    tx: Tx,
    name: str,
    *,
    kind: str,
    analyzer: str,
    policy: Policy,
    model: str,
    dimension: int,
    views: Sequence[NewView] = (),
    text_keys: TextKeys | None = None,
) -> CollectionRow:
    """Make a collection with its tables and its first generation.

    Args:
        views: those beside the first.
        text_keys: what the key of its words is sealed with, where it keeps them and no texts.

    Raises:
        Conflict: it exists, or the tenant has as many as it may have.
    """
    beside = orjson.dumps([asdict(view) for view in views]).decode()
    values = [name, kind, analyzer, orjson.dumps(asdict(policy)).decode(), model, dimension, MAX_COLLECTIONS, beside]
    number = await _made(tx, values)
    if policy.keep_terms and not policy.keep_text:
        await _set_terms_key(tx, name, number, text_keys)
    return await named(tx, name)


async def _set_terms_key(tx: Tx, name: str, number: int, text_keys: TextKeys | None) -> None:
    if text_keys is None or tx.tenant is None:
        raise ValueError("words without texts need a key, and are a tenant's")
    await text_keys.hold(tx)
    sealed = text_keys.sealing.seal_bytes(os.urandom(KEY_BYTES), about_collection(tx.tenant, name))
    await tx.execute(SET_TERMS_KEY, [sealed, number])


async def _made(tx: Tx, values: Sequence[Any]) -> int:
    try:
        row = await tx.row(MAKE, values)
    except Error as error:
        if error.sqlstate == UNIQUE:
            raise Conflict("There is a collection of this name already.", code="collection_exists") from None
        if error.sqlstate == TOO_MANY:
            raise Conflict(
                f"A tenant has at most {MAX_COLLECTIONS} collections. Drop one first.", code="too_many_collections"
            ) from None
        raise
    assert row is not None
    return int(row[0])


@dataclass(frozen=True)
class DroppedCollection:
    """A collection that is dropped: its generations, and the hashes of its texts, up to MAX_HASHES and one more."""

    was_there: bool
    generations: Sequence[int]
    text_hashes: Sequence[bytes]


async def drop(tx: Tx, collection: int) -> DroppedCollection:
    """Remove a collection with everything in it."""
    await tx.execute(PATIENCE)
    await tx.execute(LOCK, [collection])
    hashes = await tx.column(TEXT_HASHES, [collection, MAX_HASHES + 1])
    generations = await tx.column(ALL_GENERATIONS, [collection])
    row = await tx.row(DROP, [collection])
    return DroppedCollection(bool(row and row[0]), generations, [bytes(one) for one in hashes])


async def named(tx: Tx, name: str) -> CollectionRow:
    """Return the collection of this name; NotFound if this tenant has none."""
    row = await tx.row(BY_NAME, [name]) if storable(name) else None
    if row is None:
        raise NotFound("There is no collection of this name.", code="collection_not_found")
    return _collection(row)


class RecentCollections:
    """Collections as they were a moment ago: neither writing nor searching begins with a question for its collection.

    What they need of one does not change as long as it lives, but for its index and its counts, which may be so old.
    One that has been dropped is found out by its lock or its tables (CollectionGone); then `forget` it and look again.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._seen: LRUCache[tuple[int, str], tuple[float, CollectionRow]] = LRUCache(MAX_RECENT)

    async def get(self, tenant: int, name: str) -> CollectionRow:
        """Return the collection of this name; NotFound if this tenant has none."""
        seen, asked_at = self._seen.get((tenant, name)), time.monotonic()
        if seen is not None and asked_at - seen[0] < RECENT_SECONDS:
            return seen[1]
        async with self._pool.tenant(tenant) as tx:
            collection = await named(tx, name)
        self._seen[tenant, name] = (asked_at, collection)
        return collection

    def forget(self, tenant: int, name: str) -> None:
        """Have the collection looked up again the next time."""
        self._seen.pop((tenant, name), None)


async def listed(tx: Tx, *, after: str, limit: int) -> list[CollectionRow]:
    """List collections by name, from the first after `after`."""
    return [_collection(row) for row in await tx.rows(LIST, [after, limit])]


async def generation(tx: Tx, wanted: int) -> tuple[Generation, int] | None:
    """Return a generation and the collection it belongs to; None if it is gone."""
    row = await tx.row(GENERATION, [wanted])
    return None if row is None else (_generation(row[:9]), int(row[9]))


async def adopt(tx: Tx, wanted: int, *, space: str, numerics: str, probe: NDArray[np.float32]) -> None:
    """Record the space that a generation's vectors are made in, unless another process did so first."""
    await tx.execute(ADOPT, [space, numerics, probe.ravel().tolist(), wanted])


async def spaces(pool: Pool, model: str) -> list[StoredSpace]:
    """List each space that vectors of this model are stored in, of all tenants."""
    return [
        StoredSpace(space, dimension, np.asarray(probe, np.float32).reshape(-1, dimension))
        for space, dimension, probe in await pool.rows(SPACES, model)
    ]


async def add_terms(tx: Tx, collection: int, view: int, *, terms: int, contents: int, gone: int) -> None:
    """Keep the running average of a text's length in terms: of contents that came, and of those that went."""
    values = {"terms": terms, "contents": contents, "gone": gone, "collection": collection, "view": view}
    await tx.execute(ADD_TERMS_OF_VIEW if view else ADD_TERMS_OF_FIRST, values)


def _collection(row: Sequence[Any]) -> CollectionRow:
    views = tuple(_view(view) for view in row[19] or ())
    values = [*row[:5], _policy(row[5]), *row[6:9], _generation(row[9:18]), row[18], views]
    return CollectionRow(*values)


def _view(stored: Mapping[str, Any]) -> ViewRow:
    values = [stored[name] for name in ("view", "name", "terms", "terms_total", "contents_total")]
    generation = stored["generation"]
    values.append(None if generation is None else _generation(generation))
    return ViewRow(*values)


def _generation(row: Sequence[Any]) -> Generation:
    number, model, dimension, space, numerics, probe, *rest = row
    vectors = None if probe is None else np.asarray(probe, np.float32).reshape(-1, dimension)
    return Generation(number, model, dimension, space, numerics, vectors, *rest)


def _policy(stored: Mapping[str, Any]) -> Policy:
    return Policy(**{**stored, "indexed": tuple(stored.get("indexed", ()))})
