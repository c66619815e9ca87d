"""Filter tree to SQL: conditions on `records r`, exact; and the part of them that an index answers.

Every leaf is true or false, never null, so that `not` means what it says. Values are parameters always.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from psycopg import sql
from psycopg.sql import SQL, Composable, Identifier, Placeholder

from likewise.filters import TIMES, All, AnyOf, Compare, Field, Filter, Not

# What record_fields keeps of a value; longer ones are told apart by the payload.
INDEXED_CHARS = 256

FALSE = SQL("false")
TRUE = SQL("true")
_SYMBOLS = {"$eq": SQL("="), "$gt": SQL(">"), "$gte": SQL(">="), "$lt": SQL("<"), "$lte": SQL("<=")}
# The index holds numbers as float8, which may round: these bring everything that could match.
_LOOSE = {"$eq": SQL("="), "$gt": SQL(">="), "$gte": SQL(">="), "$lt": SQL("<="), "$lte": SQL("<=")}
_BY_FIELD = SQL("r.pk IN (SELECT f.record FROM record_fields f WHERE f.collection = {} AND f.field = {} AND {})")
_BY_FACT = SQL("r.content IN (SELECT f.content FROM content_fields f WHERE f.collection = {} AND f.field = {} AND {})")

# Up to here every whole number has a float8 of its own.
_EXACT_NUMBERS = 2**53

# The columns of a record that an index has with the record's content. Text is compared for equality only: orderings
# are by code point, and the index is not.
_EQUALITY = ("$eq", "$in")
_INDEXED_COLUMNS = {"id": _EQUALITY, "parent": _EQUALITY, "status": _EQUALITY, "occurred_at": tuple(_SYMBOLS)}

# What told which records fit: facts that the text determines, the indexed fields, an index on a column of the records,
# or a look at every record of the collection.
FilterSource = Literal["contents", "record_fields", "columns", "scan"]


@dataclass(frozen=True)
class IndexedFields:
    """The payload fields that indexes know: those of each record, and those that the text alone determines."""

    of_records: Collection[str] = ()
    of_texts: Collection[str] = ()


@dataclass
class Where:
    """A condition with its named parameters, and the source that answers it."""

    sql: Composable = field(default_factory=lambda: TRUE)
    parameters: dict[str, Any] = field(default_factory=dict)
    source: FilterSource = "scan"
    prefix: str = "where"
    view: int = 0

    def bind(self, value: Any) -> Placeholder:
        """Bind one more value; return its place."""
        name = f"{self.prefix}_{len(self.parameters)}"
        self.parameters[name] = value
        return Placeholder(name)

    @property
    def pointing(self) -> Composable:
        """The rows to look among: `r` of records, each with what it points at in the view."""
        if not self.view:
            return SQL("records r")
        return SQL("record_contents b JOIN records r ON r.pk = b.record AND b.view = {}").format(sql.Literal(self.view))

    @property
    def content(self) -> SQL:
        """The content that such a row points at."""
        return SQL("b.content") if self.view else SQL("r.content")


def condition(tree: Filter | None, collection: int, indexed: IndexedFields, view: int = 0) -> Where:
    """Return the condition for rows `r` of records: the whole filter, narrowed by what the indexes know."""
    where = Where(view=view)
    parts: list[Composable] = [SQL("r.collection = {}").format(where.bind(collection))]
    if tree is not None:
        narrowed = list(_narrowed(tree, collection, indexed, where))
        where.source = narrowed[0][0] if narrowed else "scan"
        parts += [test for _, test in narrowed]
        parts.append(_sql(tree, where))
    where.sql = SQL(" AND ").join(parts)
    return where


def exactly(tree: Filter | None, collection: int, view: int = 0) -> Where:
    """Return the whole filter for a few rows `r` that are known otherwise; no index helps."""
    return condition(tree, collection, IndexedFields(), view)


def json_value(of: Field, where: Where) -> Composable:
    """Return the value of a field of rows `r` as JSON; what is absent is null."""
    value = SQL("to_jsonb(r.{})").format(Identifier(of.name)) if of.column else _value(of, where)
    return SQL("coalesce({}, 'null')").format(value)


def matching_contents(tree: Filter, collection: int, indexed: IndexedFields, view: int = 0) -> Where:
    """Return a SELECT of the contents of all records that fit; a content comes once for each of its records.

    SentResponse from indexes alone where they know everything that the filter asks, which they do for the first view.
    """
    by_index = None if view else _by_index(tree, collection, indexed, Where())
    if by_index is not None:
        return by_index
    where = condition(tree, collection, indexed, view)
    where.sql = SQL("SELECT {} FROM {} WHERE {}").format(where.content, where.pointing, where.sql)
    return where


def _by_index(tree: Filter, collection: int, indexed: IndexedFields, where: Where) -> Where | None:
    """Find the contents by indexes alone; None if they cannot tell."""
    leaves = tree.parts if isinstance(tree, All) else (tree,)
    columns: list[Composable] = []
    fields: dict[tuple[str, str], list[Composable]] = {}
    for leaf in leaves:
        if not isinstance(leaf, Compare):
            return None
        name = leaf.field.name
        if leaf.field.column:
            test, tests = _indexed_column_test(leaf, where), columns
        elif name in indexed.of_texts or name in indexed.of_records:
            table = "content_fields" if name in indexed.of_texts else "record_fields"
            test, tests = _exact_index_test(leaf, where), fields.setdefault((table, name), [])
        else:
            return None
        if test is None:
            return None
        tests.append(test)
    return _joined(collection, columns, fields, where) if columns or fields else None


def _joined(
    collection: int, columns: list[Composable], fields: dict[tuple[str, str], list[Composable]], where: Where
) -> Where:
    """Join what all must hold: columns, else fields, else facts give the rows; the rest leaves some of them out."""
    of = {
        table: [_field_rows(collection, name, tests, where) for (one, name), tests in fields.items() if one == table]
        for table in ("record_fields", "content_fields")
    }
    if columns:
        base, record, content = SQL("records r"), SQL("r.pk"), SQL("r.content")
        tests = [SQL("r.collection = {}").format(where.bind(collection)), *columns]
        where.source = "columns"
    elif of["record_fields"]:
        base, record, content = SQL("record_fields f"), SQL("f.record"), SQL("f.content")
        tests = [of["record_fields"].pop(0)]
        where.source = "record_fields"
    else:
        base, record, content = SQL("content_fields f"), SQL("NULL"), SQL("f.content")
        tests = [of["content_fields"].pop(0)]
        where.source = "contents"
    tests += [
        SQL("{} IN (SELECT f.record FROM record_fields f WHERE {})").format(record, rows)
        for rows in of["record_fields"]
    ]
    tests += [
        SQL("{} IN (SELECT f.content FROM content_fields f WHERE {})").format(content, rows)
        for rows in of["content_fields"]
    ]
    where.sql = SQL("SELECT {} FROM {} WHERE {}").format(content, base, SQL(" AND ").join(tests))
    return where


def _field_rows(collection: int, name: str, tests: list[Composable], where: Where) -> Composable:
    """Return the condition on rows `f` of one field; of a field that is no list all tests are about its one row."""
    head = SQL("f.collection = {} AND f.field = {}").format(where.bind(collection), where.bind(name))
    return SQL(" AND ").join([head, *tests])


def _indexed_column_test(leaf: Compare, where: Where) -> Composable | None:
    if leaf.operator not in _INDEXED_COLUMNS.get(leaf.field.name, ()):
        return None
    if leaf.value is None or (leaf.operator == "$in" and None in leaf.value):
        return None
    return _column_test(leaf, where)


def _exact_index_test(leaf: Compare, where: Where) -> Composable | None:
    """Return a condition on an indexed field's row that holds just where the leaf does; None if there is none."""
    values = leaf.value if leaf.operator == "$in" else (leaf.value,)
    numbers = all(_is_number(one) and abs(one) < _EXACT_NUMBERS for one in values)
    texts = leaf.operator in ("$eq", "$in") and all(isinstance(one, str) and len(one) < INDEXED_CHARS for one in values)
    if leaf.operator not in (*_SYMBOLS, "$in") or not values or not (numbers or texts):
        return None
    test = _index_test(leaf, where, _SYMBOLS)
    return None if test is None else SQL("{} AND NOT f.element").format(test)


def _narrowed(
    tree: Filter, collection: int, indexed: IndexedFields, where: Where
) -> Iterator[tuple[FilterSource, Composable]]:
    for leaf in _must_hold(tree):
        if leaf.field.column:
            # What must hold anyway, in the form that an index on the column can answer.
            test = _indexed_column_test(leaf, where)
            if test is not None:
                yield "columns", test
            continue
        name = leaf.field.name
        of_texts = name in indexed.of_texts
        test = _index_test(leaf, where) if of_texts or name in indexed.of_records else None
        if test is not None:
            rows = (_BY_FACT if of_texts else _BY_FIELD).format(where.bind(collection), where.bind(name), test)
            yield "contents" if of_texts else "record_fields", rows


def _must_hold(tree: Filter) -> Iterator[Compare]:
    """Yield the comparisons without which the filter is false."""
    if isinstance(tree, Compare):
        yield tree
    elif isinstance(tree, All):
        for part in tree.parts:
            yield from _must_hold(part)


def _index_test(leaf: Compare, where: Where, symbols: Mapping[str, SQL] = _LOOSE) -> Composable | None:
    """Return a condition on `record_fields f` that holds wherever the leaf holds; None if there is none."""
    value = leaf.value
    if leaf.operator == "$in":
        if value and all(isinstance(one, str) for one in value):
            return SQL("f.value = ANY ({})").format(where.bind([one[:INDEXED_CHARS] for one in value]))
        if value and all(_is_number(one) for one in value):
            return SQL("f.number = ANY ({}::float8[])").format(where.bind([_rounded(one) for one in value]))
    elif leaf.operator == "$eq" and isinstance(value, str):
        return SQL("f.value = {}").format(where.bind(value[:INDEXED_CHARS]))
    elif leaf.operator in _LOOSE and _is_number(value):
        return SQL("f.number {} {}::float8").format(symbols[leaf.operator], where.bind(_rounded(value)))
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _sql(tree: Filter, where: Where) -> Composable:
    if isinstance(tree, Compare):
        return _column(tree, where) if tree.field.column else _payload(tree, where)
    if isinstance(tree, Not):
        return SQL("NOT {}").format(_sql(tree.part, where))
    if not tree.parts:
        return TRUE if isinstance(tree, All) else FALSE
    word = SQL(" OR " if isinstance(tree, AnyOf) else " AND ")
    return SQL("({})").format(word.join([_sql(part, where) for part in tree.parts]))


def _column(leaf: Compare, where: Where) -> Composable:
    """Compile a leaf on a column; the names are those of filters.COLUMNS, never a caller's."""
    column, _ = _column_of(leaf)
    operator, value = leaf.operator, leaf.value
    if operator == "$exists":
        return SQL("({} IS {})").format(column, SQL("NOT NULL" if value else "NULL"))
    if value is None and operator == "$eq":
        return SQL("({} IS NULL)").format(column)
    test = _column_test(leaf, where)
    found = FALSE if test is None else SQL("coalesce({}, false)").format(test)
    return SQL("({} IS NULL OR {})").format(column, found) if operator == "$in" and None in value else found


def _column_test(leaf: Compare, where: Where) -> Composable | None:
    """Compare with what is in a column: null where nothing is; None where it can never be true."""
    column, kind = _column_of(leaf)
    operator, value = leaf.operator, leaf.value
    if operator == "$in":
        fitting = [one for one in value if isinstance(one, kind)]
        return SQL("{} = ANY ({})").format(column, where.bind(fitting)) if fitting else None
    if not isinstance(value, kind) or (operator == "$contains" and kind is not str):
        return None
    if operator == "$contains":
        return SQL("position({} IN {}) > 0").format(where.bind(value), column)
    collated = SQL('{} COLLATE "C"').format(column) if kind is str and operator != "$eq" else column
    return SQL("{} {} {}").format(collated, _SYMBOLS[operator], where.bind(value))


def _column_of(leaf: Compare) -> tuple[Composable, type]:
    return SQL("r.{}").format(Identifier(leaf.field.name)), datetime if leaf.field.name in TIMES else str


def _payload(leaf: Compare, where: Where) -> Composable:
    operator, value = leaf.operator, leaf.value
    found = _value(leaf.field, where)
    if operator == "$exists":
        return SQL("({} IS {})").format(found, SQL("NOT NULL" if value else "NULL"))
    # Where null is asked for, a field that is absent counts as null.
    if operator == "$eq":
        return SQL("(coalesce({}, 'null') = {}::jsonb)").format(found, where.bind(json.dumps(value)))
    if operator == "$in":
        values = where.bind([json.dumps(one) for one in value])
        return SQL("(coalesce({}, 'null') = ANY ({}::text[]::jsonb[]))").format(found, values)
    test = _contains(value, where) if operator == "$contains" else _ordering(operator, value, where)
    return (
        FALSE if test is None else SQL("(SELECT coalesce({}, false) FROM (SELECT {} AS v) field)").format(test, found)
    )


def _value(of: Field, where: Where) -> Composable:
    """Find a payload field: by its literal name first, then as a path; then the same within an object."""
    objects: list[Composable] = [SQL("r.payload")]
    if of.within:
        objects.append(SQL("r.payload -> {}::text").format(where.bind(of.within)))
    # Step by step, because the operator for whole paths counts into lists, where record_fields are not written.
    ways = [[of.name], of.name.split(".")] if "." in of.name else [[of.name]]
    found = [
        SQL("{}{}").format(whole, SQL("").join([SQL(" -> {}::text").format(where.bind(part)) for part in way]))
        for whole in objects
        for way in ways
    ]
    return SQL("coalesce({})").format(SQL(", ").join(found))


def _contains(value: Any, where: Where) -> Composable:
    """Test for a list that has the value, or a string that has it as a part; `v` is the field."""
    in_list = SQL("WHEN 'array' THEN v @> {}::jsonb").format(where.bind(json.dumps(value)))
    in_text: Composable = SQL("")
    if isinstance(value, str):
        in_text = SQL("WHEN 'string' THEN position({} IN v #>> ARRAY[]::text[]) > 0").format(where.bind(value))
    return SQL("CASE jsonb_typeof(v) {} {} END").format(in_list, in_text)


def _ordering(operator: str, value: Any, where: Where) -> Composable | None:
    """Order numbers against numbers and strings, by code point, against strings; `v` is the field."""
    symbol = _SYMBOLS[operator]
    if isinstance(value, str):
        text = SQL('(v #>> ARRAY[]::text[]) COLLATE "C"')
        return SQL("CASE jsonb_typeof(v) WHEN 'string' THEN {} {} {} END").format(text, symbol, where.bind(value))
    if _is_number(value):
        number = where.bind(json.dumps(value))
        return SQL("CASE jsonb_typeof(v) WHEN 'number' THEN v::numeric {} {}::numeric END").format(symbol, number)
    return None
