"""Small writes that come at once: fewer transactions, and to each caller what its own records met."""

import asyncio
from collections.abc import Sequence

import pytest

from likewise.db.failures import DatabaseFailure
from likewise.db.records import PreparedRecord, WriteOutcome
from likewise.errors import DatabaseUnavailable, NotFound
from likewise.ingest.group_commit import GROUPS_AT_ONCE, MAX_RECORDS, GroupCommit
from likewise.library import Likewise


def record(id: str) -> PreparedRecord:
    return PreparedRecord(id, id, b"", {}, "{}", None, None, None)


class Storage:
    """Stores groups when it is told to, refuses those with an id called bad, and is away for one called so."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.go = asyncio.Event()

    async def store(self, place: int, records: Sequence[PreparedRecord]) -> WriteOutcome:
        """What a writer does."""
        ids = [one.id for one in records]
        self.groups.append(ids)
        await self.go.wait()
        if "bad" in ids:
            raise DatabaseFailure("54000")
        if "away" in ids:
            raise DatabaseUnavailable
        return WriteOutcome(dict.fromkeys(ids, "created"), {one: at for at, one in enumerate(ids)})


def storing() -> tuple[Storage, GroupCommit[int]]:
    """A storage, and what commits to it in groups."""
    storage = Storage()
    return storage, GroupCommit(storage.store)


async def callers(commits: GroupCommit[int], *batches: list[str]) -> list[asyncio.Task[WriteOutcome]]:
    """A task for each batch; as many as may run at once have begun, the rest wait."""
    tasks = [asyncio.create_task(commits.write(1, [record(one) for one in ids])) for ids in batches]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_those_that_wait_go_together() -> None:
    # Given
    storage, commits = storing()
    tasks = await callers(commits, *([f"{n}"] for n in range(20)))
    # When
    storage.go.set()
    done = await asyncio.gather(*tasks)
    # Then
    assert len(storage.groups) <= GROUPS_AT_ONCE + 1
    assert [one.created for one in done] == [1] * 20
    assert [list(one.outcome_of) for one in done] == [[f"{n}"] for n in range(20)]


async def test_an_id_of_two_callers_is_stored_once_and_then_again() -> None:
    storage, commits = storing()
    tasks = await callers(commits, *([["a"], ["b"], ["a"], ["a", "c"], ["d"]]))
    storage.go.set()
    await asyncio.gather(*tasks)
    assert sum(group.count("a") for group in storage.groups) == 3
    assert all(len(set(group)) == len(group) for group in storage.groups)


async def test_a_group_has_a_bound() -> None:
    storage, commits = storing()
    tasks = await callers(commits, *([f"{n} {m}" for m in range(16)] for n in range(40)))
    storage.go.set()
    await asyncio.gather(*tasks)
    assert max(map(len, storage.groups)) <= MAX_RECORDS


async def test_a_failure_reaches_only_the_one_whose_it_is() -> None:
    storage, commits = storing()
    tasks = await callers(commits, *([["x"], ["y"], ["a"], ["bad"], ["c"]]))
    storage.go.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in done] == [WriteOutcome, WriteOutcome, WriteOutcome, DatabaseFailure, WriteOutcome]


async def test_a_database_that_is_away_is_asked_once_for_all() -> None:
    storage, commits = storing()
    storage.go.set()
    tasks = await callers(commits, *([["x"], ["y"], ["a"], ["away"], ["c"]]))
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert done.count(done[3]) == len(next(group for group in storage.groups if "away" in group))
    assert sum(map(len, storage.groups)) == 5


async def test_a_caller_that_leaves_before_its_turn_stores_nothing() -> None:
    storage, commits = storing()
    begun = [await callers(commits, [f"{n}"]) for n in range(GROUPS_AT_ONCE)]
    tasks = await callers(commits, ["3"], ["4"])
    tasks[-1].cancel()
    storage.go.set()
    await asyncio.gather(*(task for each in begun for task in each), *tasks, return_exceptions=True)
    await commits.close()
    assert "4" not in {one for group in storage.groups for one in group}


async def test_many_writers_of_single_records(lw: Likewise) -> None:
    # Given
    notes = lw.collection("notes")
    await notes.create()
    # When
    results = await asyncio.gather(
        *(notes.add([{"id": f"{n % 50}", "text": f"text {n % 50}"}], wait=False) for n in range(100))
    )
    # Then
    assert sum(one.created for one in results) == 50
    assert sum(one.unchanged for one in results) == 50
    assert (await notes.stats())["records"] == 50


async def test_a_collection_that_is_dropped_and_made_again_takes_writes(lw: Likewise) -> None:
    notes = lw.collection("notes")
    for n in range(3):
        await notes.create()
        assert (await notes.add([{"id": "a", "text": f"text {n}"}], wait=False)).created == 1
        await notes.drop()
        with pytest.raises(NotFound):
            await lw.collections.write(await lw.tenant(), "notes", [])
