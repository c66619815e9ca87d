"""Payload fields that filters find by an index: one row for each value, of a record or of a content."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from psycopg.sql import SQL

from likewise.db.transaction import Tx
from likewise.db.where import INDEXED_CHARS
from likewise.kind import Payload

DROP_FIELDS = SQL("DELETE FROM record_fields WHERE record = ANY (%s::bigint[])")
ADD_FIELDS = SQL("""
    INSERT INTO record_fields (tenant, collection, field, value, number, element, content, record)
    SELECT %b, %b, i.*
    FROM unnest(%b::text[], %b::text[], %b::float8[], %b::bool[], %b::bigint[], %b::bigint[]) AS i
""")
ADD_FACTS = SQL("""
    INSERT INTO content_fields (tenant, collection, field, value, number, element, content)
    SELECT %b, %b, i.* FROM unnest(%b::text[], %b::text[], %b::float8[], %b::bool[], %b::bigint[]) AS i
""")


async def write(
    tx: Tx, collection: int, names: Sequence[str], rows: Iterable[tuple[Payload, int, int]], *, changed: Sequence[int]
) -> None:
    """Index the named fields of records, given as (payload, content, record); `changed` have been indexed before."""
    if changed:
        await tx.execute(DROP_FIELDS, [list(changed)])
    await _add(tx, ADD_FIELDS, collection, names, rows)


async def write_facts(tx: Tx, collection: int, names: Sequence[str], rows: Iterable[tuple[Payload, int]]) -> None:
    """Index the named fields of new contents, given as (payload, content): any record with that text has them."""
    await _add(tx, ADD_FACTS, collection, names, rows)


async def _add(
    tx: Tx, statement: SQL, collection: int, names: Sequence[str], rows: Iterable[tuple[Payload, *tuple[int, ...]]]
) -> None:
    values = [
        (name, *indexed, *keys) for payload, *keys in rows for name in names for indexed in field_values(payload, name)
    ]
    if values:
        await tx.execute(statement, [tx.tenant, collection, *(list(column) for column in zip(*values, strict=True))])


def field_values(payload: Payload, name: str) -> Iterator[tuple[str | None, float | None, bool]]:
    """Yield the indexed values of a field: a string's beginning or a number; of a list, each such element."""
    value = payload_field(payload, name)
    is_list = isinstance(value, list)
    for one in value if is_list else [value]:
        if isinstance(one, str):
            yield one[:INDEXED_CHARS], None, is_list
        elif isinstance(one, int | float) and not isinstance(one, bool):
            yield None, float(one), is_list


def payload_field(payload: Payload, name: str) -> Any:
    """Return a field by its literal name, else by a path; None if it is absent."""
    if name in payload:
        return payload[name]
    found: Any = payload
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found
