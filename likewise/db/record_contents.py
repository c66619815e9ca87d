"""The contents that records have in the views beside the first; those of the first are in the records themselves."""

from collections.abc import Iterable, Mapping, Sequence

from psycopg.sql import SQL

from likewise.db.failures import Contended
from likewise.db.transaction import Tx

# As they stand, with the place of each record in a batch.
COMPARE = SQL("""
    SELECT i.place, b.view, b.content, c.text_hash, c.state = 'failed'
    FROM unnest(%b::int[], %b::text[]) AS i (place, id)
    CROSS JOIN LATERAL (SELECT pk FROM records r WHERE r.collection = %b AND r.id = i.id OFFSET 0) r
    JOIN record_contents b ON b.record = r.pk
    CROSS JOIN LATERAL (SELECT * FROM contents c WHERE c.pk = b.content OFFSET 0) c
""")
FIND = SQL("SELECT record, view, content FROM record_contents WHERE record = ANY (%s::bigint[])")
DROP = SQL("""
    DELETE FROM record_contents b USING unnest(%s::bigint[], %s::smallint[]) AS i (record, view)
    WHERE b.record = i.record AND b.view = i.view
""")
POINT = SQL("""
    INSERT INTO record_contents (tenant, collection, record, view, content)
    SELECT %b, %b, i.record, i.view, i.content
    FROM unnest(%b::bigint[], %b::smallint[], %b::bigint[]) AS i (record, view, content)
    ON CONFLICT (record, view) DO UPDATE SET content = excluded.content
""")

# A record and a view, and the content that the record has there.
Pointers = Mapping[tuple[int, int], int]


async def of(tx: Tx, records: Iterable[int]) -> dict[tuple[int, int], int]:
    """Return what records, by their keys, have in the views beside the first."""
    return {(int(pk), int(view)): int(content) for pk, view, content in await tx.rows(FIND, [list(records)])}


async def point(tx: Tx, collection: int, changed: Sequence[int], was: Pointers, wanted: Pointers) -> None:
    """Point records at their contents, whose locks are held.

    Args:
        changed: records that were there before, which are locked.
        was: what these were seen to have.
        wanted: what all are to have from now on.

    Raises:
        Contended: another writer gave one of them another content meanwhile; try the whole transaction again.
    """
    if changed and await of(tx, changed) != was:
        raise Contended("40001", "record_contents")
    over = [key for key in was if key not in wanted]
    fresh = [(*key, content) for key, content in wanted.items() if was.get(key) != content]
    if over:
        await tx.execute(DROP, [list(column) for column in zip(*over, strict=True)])
    if fresh:
        await tx.execute(POINT, [tx.tenant, collection, *(list(column) for column in zip(*fresh, strict=True))])
