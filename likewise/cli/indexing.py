"""The work of `likewise index`: files into a collection, only what changed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from likewise.cli import standard_input
from likewise.cli.files import Source, of_lines, sources
from likewise.cli.terminal import Report
from likewise.errors import Fault, Invalid, NotFound
from likewise.kind import NewRecord
from likewise.library import Likewise

BATCH = 500


@dataclass
class Indexed:
    """What became of the files."""

    collection: str
    files: int = 0
    created: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def stored(self) -> int:
        """Records that are in the collection now, changed or not."""
        return self.created + self.changed + self.unchanged

    def as_json(self) -> dict[str, Any]:
        """The same for a program."""
        return asdict(self)


async def index(likewise: Likewise, path: str, collection: str, model: str | None, report: Report) -> Indexed:
    """Read what there is, store it in batches, and remove parts of files that became shorter."""
    done = Indexed(collection)
    tenant = await likewise.tenant()
    async for batch in _of_standard_input() if path == "-" else _of_path(path):
        done.files += sum(not file.continued for file in batch)
        done.faults += [fault for file in batch for fault in file.faults]
        records = [record for file in batch for record in file.records]
        if records:
            await _ensure(likewise, tenant, collection, model)
        for start in range(0, len(records), BATCH):
            await _write(likewise, tenant, records[start : start + BATCH], done)
        for file in batch:
            if file.cut and done.stored:
                done.removed += await _remove_old_parts(likewise, tenant, collection, file)
        report(done.stored, done.stored)
    return done


async def _of_standard_input() -> AsyncIterator[list[Source]]:
    first = 1
    async for lines in standard_input.batches(BATCH):
        yield [of_lines(lines, "stdin", first)]
        first += len(lines)


async def _of_path(path: str) -> AsyncIterator[list[Source]]:
    files = sources(Path(path))
    while batch := await asyncio.to_thread(_next_batch, files):
        yield batch


def _next_batch(files: Iterator[Source]) -> list[Source]:
    """Files with about 500 records together."""
    batch: list[Source] = []
    size = 0
    for file in files:
        batch.append(file)
        size += len(file.records)
        if size >= BATCH:
            break
    return batch


async def _ensure(likewise: Likewise, tenant: int, collection: str, model: str | None) -> None:
    try:
        await likewise.collections.get(tenant, collection)
    except NotFound:
        await likewise.collections.create(tenant, collection, model, None)


async def _write(likewise: Likewise, tenant: int, records: list[NewRecord], done: Indexed) -> None:
    """Store a batch; records that the collection refuses are told and left out."""
    # JSON lines may name a record twice; what was written later is what they say.
    batch = list({record.id: record for record in records}.values())
    while batch:
        try:
            result = await likewise.collections.write(tenant, done.collection, batch)
        except Invalid as error:
            refused = {place for fault in error.faults if (place := _place(fault)) is not None and place < len(batch)}
            if not refused:
                raise
            done.faults += [f"{batch[place].id}: {error.detail}" for place in sorted(refused)]
            batch = [record for place, record in enumerate(batch) if place not in refused]
            continue
        done.created += result.created
        done.changed += result.changed
        done.unchanged += result.unchanged
        return


def _place(fault: Fault) -> int | None:
    first = fault.pointer.removeprefix("/").partition("/")[0]
    return int(first) if first.isdecimal() else None


async def _remove_old_parts(likewise: Likewise, tenant: int, collection: str, file: Source) -> int:
    """Remove what a longer text of this file left behind; returns how many."""
    count = len(file.records)
    removed = 0
    if count != 1:
        removed += await _remove(likewise, tenant, collection, file.name)
    number = 1 if count == 1 else count + 1
    while await _remove(likewise, tenant, collection, f"{file.name}#{number}"):
        removed, number = removed + 1, number + 1
    return removed


async def _remove(likewise: Likewise, tenant: int, collection: str, id: str) -> bool:
    try:
        await likewise.collections.delete(tenant, collection, id)
    except NotFound:
        return False
    return True
