"""Records that come together: a JSON array or a program's list is stored whole or not at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from likewise.apps.checking import checked
from likewise.apps.collections.schemas import RecordIn, RecordsIn
from likewise.apps.collections.service import CollectionsService, WriteAnswer, refuse_same_ids
from likewise.cleaning import cleaned_json, is_json
from likewise.errors import Invalid
from likewise.ingest.batch import NOT_JSON, refuse_unstorable
from likewise.ingest.unit_of_work import AnswerStore
from likewise.kind import NewRecord


@dataclass(frozen=True)
class Array:
    """The records of `[...]` or of `{"records": [...]}`; `within` is where they lie in the caller's document."""

    records: list[NewRecord]
    within: str

    @property
    def texts(self) -> list[str]:
        """The texts of the records."""
        return [record.text or "" for record in self.records]


def checked_array(body: Any) -> Array:
    """Return the records of a JSON document; Invalid with pointers into that document."""
    bare = isinstance(body, list)
    try:
        records = checked(RecordsIn, {"records": body} if bare else body).records
    except Invalid as error:
        raise (error.moved("/records", "") if bare else error) from None
    return Array([record.to_record() for record in records], "" if bare else "/records")


def checked_records(records: Sequence[Mapping[str, Any] | NewRecord]) -> list[NewRecord]:
    """Return the records that a program gives, checked as the HTTP API would; Invalid with the place of each fault."""
    if isinstance(records, str | Mapping) or not isinstance(records, Sequence):
        raise Invalid.at("", "Records come as a list, one of them as a list of one.", "wrong_type")
    incoming = [_given_record(one, place) for place, one in enumerate(records)]
    refuse_unstorable(incoming)
    refuse_same_ids(incoming)
    return incoming


def _given_record(one: Mapping[str, Any] | NewRecord, place: int) -> NewRecord:
    if isinstance(one, NewRecord):
        one = {name: value for name, value in vars(one).items() if value is not None}
    if not isinstance(one, Mapping):
        raise Invalid.at(f"/{place}", "A record is an object with an id and a text.", "wrong_type")
    if not is_json(one.get("payload", {})):
        raise Invalid.at(f"/{place}/payload", NOT_JSON)
    # The id keeps its form, and is refused if it cannot.
    fixed = {name: value if name == "id" else cleaned_json(value) for name, value in one.items()}
    try:
        return checked(RecordIn, fixed).to_record()
    except Invalid as error:
        raise error.moved("", f"/{place}") from None


async def write_array(
    service: CollectionsService, tenant: int, name: str, array: Array, answers: AnswerStore | None = None
) -> WriteAnswer:
    """Store the records, all of them or none; `answers` keep the result with them."""
    try:
        result = await service.write(tenant, name, array.records, answers=answers)
    except Invalid as error:
        raise error.moved("", array.within) from None
    return replace(result, failed=[fault.moved("", array.within) for fault in result.failed])
