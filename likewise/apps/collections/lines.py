"""Records that come as lines of JSON (NDJSON): stored in batches while they arrive."""

import asyncio
from dataclasses import replace

from pydantic import ValidationError

from likewise.apps.body import MAX_LINE_BYTES, Lines
from likewise.apps.checking import NUMBER_TOO_LARGE, faults_of, parse_json
from likewise.apps.collections.schemas import RecordIn
from likewise.apps.collections.service import CollectionsService, WriteAnswer
from likewise.auth.quotas import Quotas
from likewise.errors import Fault, Internal, Invalid, LargerThanQuota, LikewiseError, Malformed, TooManyRequests
from likewise.kind import BATCH, NewRecord
from likewise.observe.logs import get_logger
from likewise.observe.steps import refused

# A file that is not what its sender thinks must not fill the answer with a fault for each of millions of lines.
MAX_BAD_LINES = 1_000
# Long lines are stored sooner, so that what a body holds in memory does not depend on its size.
MAX_BATCH_BYTES = 4 * 2**20
LINE_TOO_LARGE = f"A line may have {MAX_LINE_BYTES} bytes."
# Reading a longer one takes milliseconds, in which other requests should go on.
LONG_LINE = 100_000
NOT_STORED = "not_stored"

log = get_logger(__name__)

# Per record id, the line it came from and the record; a later line with the same id replaces an earlier one.
Batch = dict[str, tuple[int, NewRecord]]


async def write_lines(service: CollectionsService, tenant: int, name: str, lines: Lines, quotas: Quotas) -> WriteAnswer:
    """Store the records of an NDJSON body in batches while it arrives.

    If the database goes away after some were stored, or the tenant has used up its quota or its share of what may wait,
    the answer says which line the rest begins with.
    """
    await service.get(tenant, name)
    ingest = _LineIngest(service, tenant, name, quotas)
    async for number, line in lines:
        if ingest.bad >= MAX_BAD_LINES:
            ingest.fail([_stopped(number)])
            break
        await ingest.take(number, line)
        if ingest.is_full and not await ingest.store():
            return ingest.done
        lines.release(but=ingest.bytes)
    await ingest.store()
    return ingest.done


class _LineIngest:
    """The outcome of the lines so far, and the batch of those that are stored next."""

    def __init__(self, service: CollectionsService, tenant: int, name: str, quotas: Quotas) -> None:
        self._service = service
        self._tenant = tenant
        self._name = name
        self._quotas = quotas
        self.done = WriteAnswer(0, 0, 0, [])
        self.bad = 0
        self.bytes = 0
        self._batch: Batch = {}
        self._replaced = 0
        self._any_stored = False

    @property
    def is_full(self) -> bool:
        """True when it is time to store the batch."""
        return len(self._batch) >= BATCH or self.bytes >= MAX_BATCH_BYTES

    async def take(self, number: int, line: bytes | None) -> None:
        """Read a line into the batch; None is one that was too long."""
        if line is None:
            self.fail([Fault(f"/{number}", "too_large", LINE_TOO_LARGE)])
            return
        try:
            record = _record(line) if len(line) < LONG_LINE else await asyncio.to_thread(_record, line)
        except LikewiseError as error:
            self.fail(_on_line(number, error))
            return
        self.bytes += len(line)
        self._replaced += record.id in self._batch
        self._batch[record.id] = (number, record)

    async def store(self) -> bool:
        """Store the batch; False, with a fault for all of it, if that fails and others are stored already."""
        if not self._batch:
            return True
        try:
            self._quotas.spend(self._tenant, (record.text or "" for _, record in self._batch.values()))
            result = await _write(self._service, self._tenant, self._name, self._batch)
        except LikewiseError as error:
            over_quota = isinstance(error, TooManyRequests | LargerThanQuota)
            if not self._any_stored or not (over_quota or error.retryable or error.status >= Internal.status):
                raise
            log.warning("lines_not_stored", error=error)
            why = error.detail if over_quota else "The server could not store this line."
            self.fail([_not_stored(min(number for number, _ in self._batch.values()), why)])
            return False
        self.done += replace(result, changed=result.changed + self._replaced, failed=[])
        self._batch, self.bytes, self._replaced, self._any_stored = {}, 0, 0, True
        self.fail(result.failed)
        return True

    def fail(self, faults: list[Fault]) -> None:
        """Note lines that are not stored."""
        bad = len({fault.index for fault in faults})
        refused(bad)
        self.bad += bad
        self.done.failed.extend(faults)


def complete(result: WriteAnswer) -> bool:
    """Return whether all lines that are right were stored; some may have met a quota or a fault that passes."""
    return not any(fault.code == NOT_STORED for fault in result.failed)


async def _write(service: CollectionsService, tenant: int, name: str, batch: Batch) -> WriteAnswer:
    """Store a batch; records that the service refuses are named by line, and the others stored without them."""
    lines = [number for number, _ in batch.values()]
    records = [record for _, record in batch.values()]
    try:
        result = await service.write(tenant, name, records)
    except Invalid as error:
        refused = {fault.index for fault in error.faults} - {None}
        if not refused:
            raise
        named = [fault.moved("", lambda place: f"/{lines[place]}") for fault in error.faults]
        rest = {key: entry for index, (key, entry) in enumerate(batch.items()) if index not in refused}
        return WriteAnswer(0, 0, 0, named) + (
            await _write(service, tenant, name, rest) if rest else WriteAnswer(0, 0, 0, [])
        )
    return replace(result, failed=[fault.moved("", lambda place: f"/{lines[place]}") for fault in result.failed])


def _record(line: bytes) -> NewRecord:
    value = parse_json(line)
    if not isinstance(value, dict):
        raise Invalid.at("", "A line must be a JSON object.", "wrong_type")
    try:
        return RecordIn.model_validate(value).to_record()
    except ValidationError as error:
        raise Invalid(faults=faults_of(error)) from None


def _on_line(number: int, error: LikewiseError) -> list[Fault]:
    faults = error.faults or (Fault("", error.code, _line_words(error)),)
    return [fault.moved("", f"/{number}") for fault in faults]


def _line_words(error: LikewiseError) -> str:
    if isinstance(error, Malformed) and error.detail != NUMBER_TOO_LARGE:
        return "This line is not valid JSON in UTF-8."
    return error.detail


def _stopped(number: int) -> Fault:
    message = f"More than {MAX_BAD_LINES} lines are bad; this line and those after it are not stored."
    return Fault(f"/{number}", "stopped", message)


def _not_stored(number: int, why: str) -> Fault:
    return Fault(f"/{number}", NOT_STORED, f"{why} Neither this line nor any after it is stored; send them again.")
