"""Payload fields that filters find by an index: one row for each value, of a record or of a content."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from psycopg.sql import SQL

from likewise.db.transaction import Tx
from likewise.db.where import INDEXED_CHARS
from likewise.kind import Payload

DROP_FIELDS = SQL("DELETE FROM record_fields WHERE record = ANY (%s::bigint[])")
ADD_FIELDS = SQL("""
    INSERT INTO record_fields (tenant, collection, field, value, number, element, record, content)
    SELECT %b, %b, i.field, i.value, i.number, i.element, i.record, i.content
    FROM unnest(%b::text[], %b::text[], %b::float8[], %b::bool[], %b::bigint[], %b::bigint[])
         AS i (field, value, number, element, record, content)
""")
ADD_FACTS = SQL("""
    INSERT INTO content_fields (tenant, collection, field, value, number, element, content)
    SELECT %b, %b, i.field, i.value, i.number, i.element, i.content
    FROM unnest(%b::text[], %b::text[], %b::float8[], %b::bool[], %b::bigint[])
         AS i (field, value, number, element, content)
""")


async def write(
    tx: Tx,
    collection: int,
    names: Sequence[str],
    rows: Iterable[tuple[int, int, Payload]],
    *,
    changed: Sequence[int],
) -> None:
    """Index the named fields of records, given as (record, content, payload); `changed` have been indexed before."""
    if changed:
        await tx.execute(DROP_FIELDS, [list(changed)])
    values = [
        (name, value, number, element, record, content)
        for record, content, payload in rows
        for name in names
        for value, number, element in field_values(payload, name)
    ]
    if values:
        await tx.execute(ADD_FIELDS, [tx.tenant, collection, *(list(column) for column in zip(*values, strict=True))])


async def write_facts(tx: Tx, collection: int, names: Sequence[str], rows: Iterable[tuple[int, Payload]]) -> None:
    """Index the named fields of new contents, given as (content, payload): any record with that text has them."""
    values = [
        (name, value, number, element, content)
        for content, payload in rows
        for name in names
        for value, number, element in field_values(payload, name)
    ]
    if values:
        await tx.execute(ADD_FACTS, [tx.tenant, collection, *(list(column) for column in zip(*values, strict=True))])


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
