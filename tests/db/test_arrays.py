"""Arrays in their binary form come back from Postgres as they were sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.sql import SQL

from likewise.db.arrays import BigintArray, BinaryValue, bytea_array, text_array
from likewise.db.transaction import Statement
from likewise.library import Likewise

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


async def sent(lw: Likewise, statement: Statement, value: BinaryValue) -> list[object]:
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        (row,) = await tx.rows(statement, [value])
        back: list[object] = row[0]
        return back


@given(texts=st.lists(st.none() | TEXTS))
async def test_texts(lw: Likewise, texts: list[str | None]) -> None:
    assert await sent(lw, SQL("SELECT %b::text[]"), text_array(texts)) == texts


@given(values=st.lists(st.none() | st.binary()))
async def test_bytes(lw: Likewise, values: list[bytes | None]) -> None:
    assert await sent(lw, SQL("SELECT %b::bytea[]"), bytea_array(values)) == values


@pytest.mark.parametrize("narrower", ["bigint", "int", "smallint"])
@given(numbers=st.lists(st.integers(-(2**15), 2**15 - 1)))
async def test_numbers_of_any_size(lw: Likewise, narrower: str, numbers: list[int]) -> None:
    statement = SQL("SELECT %b::{}[]").format(SQL(narrower))
    assert await sent(lw, statement, BigintArray.of(numbers)) == numbers


@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1)))
async def test_an_array_is_read_as_it_came(lw: Likewise, numbers: list[int]) -> None:
    array = BigintArray.of(numbers)
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        (row,) = await tx.rows(SQL("SELECT array_send(%b::bigint[])"), [array])
    back = BigintArray(row[0])
    assert len(back) == len(array) == len(numbers)
    assert back.numbers().tolist() == array.numbers().tolist() == numbers
