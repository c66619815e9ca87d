"""`likewise index`: files into a collection, only what changed."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from likewise.cli.files import Source, count_files, of_lines, owner_of, sources
from likewise.cli.models import model_named
from likewise.cli.opening import note_waiting, open_library, until_embedded
from likewise.cli.running import FAILED, OK, PARTLY, AsJson, CollectionOption, ModelOption, command_settings, run
from likewise.cli.terminal import answer, counted, in_a_line, note_faults, require_stdin, stdin_batches
from likewise.db import collections, lookups
from likewise.errors import Invalid, NotFound
from likewise.kind import BATCH, NewRecord
from likewise.library import Likewise
from likewise.progress import Report, progress
from likewise.settings import Settings


@dataclass
class IndexOutcome:
    """The counts of records by what became of them, and the faults."""

    collection: str
    files: int = 0
    created: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def stored(self) -> int:
        """Count the records that are in the collection now, changed or not."""
        return self.created + self.changed + self.unchanged


def index(
    path: Annotated[str, typer.Argument(help="A folder, a text, Markdown or JSONL file, or - for JSON lines.")],
    collection: CollectionOption,
    model: ModelOption = None,
    as_json: AsJson = False,
) -> None:
    require_stdin(path == "-")
    settings = command_settings()

    async def work() -> int:
        async with open_library(settings, worker=True) as likewise:
            with progress("Reading", quiet=as_json) as report:
                done = await index_files(likewise, path, collection, model, report)
            reason = await until_embedded(likewise, collection, quiet=as_json) if done.stored else None
        _print_outcome(done, reason, as_json=as_json)
        if done.faults and not done.stored:
            return FAILED
        return PARTLY if done.faults or reason else OK

    run(lambda _: work())


def _print_outcome(done: IndexOutcome, reason: str | None, *, as_json: bool) -> None:
    note_faults(done.faults)
    line = (
        f"{done.collection}: {done.created} new, {done.changed} changed, {done.unchanged} unchanged, "
        f"{done.removed} removed, from {counted(done.files, 'file')}."
    )
    answer(asdict(done) | {"waiting_for_model": reason}, line, as_json=as_json)
    if reason and not as_json:
        note_waiting(reason)


async def index_files(
    likewise: Likewise, path: str, collection: str, model: str | None, report: Report
) -> IndexOutcome:
    """Read what there is, store it in batches, and remove what the same path held before and holds no more."""
    done = IndexOutcome(collection)
    tenant = await likewise.tenant()
    there = await _is_there(likewise, tenant, collection, model)
    here = _PathContents(None if path == "-" else owner_of(Path(path)))
    files = None if path == "-" else await asyncio.to_thread(count_files, Path(path))
    async for batch in _of_standard_input() if path == "-" else _of_path(path):
        if there:
            await _leave_out_others(likewise, tenant, collection, batch, here)
        here.saw(batch)
        done.files += sum(not file.continued for file in batch)
        done.faults += [fault for file in batch for fault in file.faults]
        records = [record for file in batch for record in file.records]
        if records and not there:
            await likewise.collections.create(tenant, collection, model, None)
            there = True
        for start in range(0, len(records), BATCH):
            await _write(likewise, tenant, records[start : start + BATCH], done)
            report(done.stored, _expected(done, len(records) - start - BATCH, files))
    if there and here.owner is not None:
        done.removed = await _remove_gone(likewise, tenant, collection, here, here.owner)
    return done


def _expected(done: IndexOutcome, left: int, files: int | None) -> int | None:
    """Estimate how many records there will be: those left of what was read, and as many in the files to come."""
    if files is None:
        return None
    read = done.stored + max(left, 0)
    return round(read * max(1.0, files / max(done.files, 1)))


class _PathContents:
    """The contents of a path now: the ids that were read, and the names of what could not be read to its end."""

    def __init__(self, owner: str | None) -> None:
        self.owner = owner
        self._ids: set[str] = set()
        self._unread: set[str] = set()

    def saw(self, batch: Sequence[Source]) -> None:
        self._ids |= {record.id for file in batch for record in file.records}
        self._unread |= {file.name for file in batch if file.faults}

    def may_have(self, id: str) -> bool:
        """Tell whether a record's file is there, or nobody could look."""
        name = id if id in self._unread else id.rpartition("#")[0] or id
        above = (str(folder) for folder in PurePosixPath(id).parents)
        return id in self._ids or name in self._unread or not self._unread.isdisjoint(above)


async def _of_standard_input() -> AsyncIterator[list[Source]]:
    first = 1
    async for lines in stdin_batches(BATCH):
        yield [of_lines(lines, "stdin", first=first)]
        first += len(lines)


async def _of_path(path: str) -> AsyncIterator[list[Source]]:
    files = sources(Path(path))
    while batch := await asyncio.to_thread(_next_batch, files):
        yield batch


def _next_batch(files: Iterator[Source]) -> list[Source]:
    """Take files with about 500 records together."""
    batch: list[Source] = []
    size = 0
    for file in files:
        batch.append(file)
        size += len(file.records)
        if size >= BATCH:
            break
    return batch


async def _is_there(likewise: Likewise, tenant: int, collection: str, model: str | None) -> bool:
    """Tell whether the collection exists; Invalid if it does with another model than the one that is asked for."""
    try:
        kept = (await likewise.collections.get(tenant, collection)).model
    except NotFound:
        return False
    if model is not None and (asked := _name_of(likewise.settings, model)) != kept:
        raise Invalid(
            f"The collection {collection} has the model {kept} and keeps it; {asked} needs a collection of its own."
        )
    return True


def _name_of(settings: Settings, model: str) -> str:
    try:
        return model_named(settings, model).name
    except NotFound:
        return model


async def _leave_out_others(
    likewise: Likewise, tenant: int, collection: str, batch: Sequence[Source], here: _PathContents
) -> None:
    """Take the records out of files of which the collection has an id already that came from elsewhere."""
    ids = [record.id for file in batch for record in file.records if record.parent == here.owner is not None]
    if not ids:
        return
    async with likewise.runtime.pool.tenant(tenant) as tx:
        number = (await collections.named(tx, collection)).id
        others = await lookups.of_others(tx, number, ids, here.owner)
    for file in batch:
        taken = next((record.id for record in file.records if record.id in others), None)
        if taken is not None:
            file.refuse(f"the collection has {taken} {_origin(others[taken])}")


def _origin(parent: str | None) -> str:
    return "from elsewhere" if parent is None else f"from {in_a_line(parent)}"


async def _write(likewise: Likewise, tenant: int, records: list[NewRecord], done: IndexOutcome) -> None:
    """Store a batch; records that the collection refuses are named and left out."""
    # JSON lines may name a record twice; what was written later is what they say.
    batch = list({record.id: record for record in records}.values())
    while batch:
        try:
            result = await likewise.collections.write(tenant, done.collection, batch)
        except Invalid as error:
            refused = {fault.index for fault in error.faults if fault.index is not None}
            if not refused:
                raise
            done.faults += [f"{batch[place].id}: {error.detail}" for place in sorted(refused)]
            batch = [record for place, record in enumerate(batch) if place not in refused]
            continue
        done.created += result.created
        done.changed += result.changed
        done.unchanged += result.unchanged
        return


async def _remove_gone(likewise: Likewise, tenant: int, collection: str, here: _PathContents, owner: str) -> int:
    """Remove the records of this path whose file, or part of it, is gone; returns how many."""
    async with likewise.runtime.pool.tenant(tenant) as tx:
        number = (await collections.named(tx, collection)).id
        kept = await lookups.of_parent(tx, number, owner)
    removed = 0
    for id_ in kept:
        if not here.may_have(id_):
            removed += await _remove(likewise, tenant, collection, id_)
    return removed


async def _remove(likewise: Likewise, tenant: int, collection: str, id: str) -> bool:
    try:
        await likewise.collections.delete(tenant, collection, id)
    except NotFound:
        return False
    return True
