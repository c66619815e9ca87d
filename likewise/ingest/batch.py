"""A batch of records on its way in: refused where it cannot be stored as it is, else cleaned and hashed."""

from collections.abc import Sequence

from likewise.cleaning import cleaned, cleaned_json, fit_for_id, is_json
from likewise.db import records
from likewise.db.records import PreparedRecord
from likewise.embedding.embedder import Embedder
from likewise.errors import Fault, Invalid
from likewise.kind import Kind, NewRecord
from likewise.observe.request_id import REQUEST_ID

NOT_JSON = (
    "A payload is a JSON object; its numbers are finite, integers have 64 bits at most, and its keys are texts that "
    "differ without NUL and halves of surrogate pairs, which become U+FFFD."
)
BAD_ID = "An id is a text without control characters and without U+FFFD, a character that was lost on the way."


def refuse_unstorable(batch: Sequence[NewRecord]) -> None:
    """Raise Invalid with a fault for each id and each payload that cannot be stored as it is."""
    faults = []
    for place, record in enumerate(batch):
        if not record.id or not fit_for_id(record.id):
            faults.append(Fault(f"/{place}/id", "invalid_value", BAD_ID))
        if not is_json(record.payload):
            faults.append(Fault(f"/{place}/payload", "invalid_value", NOT_JSON))
    if faults:
        raise Invalid(faults[0].message, faults=faults)


async def refuse_long(embedder: Embedder, model: str, kind: Kind, batch: Sequence[NewRecord]) -> None:
    """Raise Invalid with a fault for each text of which a model would cut off the end."""
    max_tokens = (await embedder.opened(model)).max_tokens
    try:
        lengths = await embedder.lengths([kind.text(record) for record in batch], model)
    except Invalid as error:
        raise error.moved("/texts", "/{}/text".format) from None
    message = f"This collection refuses texts that its model would cut off: at most {max_tokens} tokens."
    faults = [
        Fault(f"/{place}/text", "text_too_long", message) for place, length in enumerate(lengths) if length > max_tokens
    ]
    if faults:
        raise Invalid(message, code="text_too_long", faults=faults)


def prepare_batch(kind: Kind, batch: Sequence[NewRecord]) -> list[PreparedRecord]:
    """Prepare the records of a batch, in the order of their ids, in which they are locked."""
    return sorted((prepare(kind, record) for record in batch), key=lambda record: record.id)


def prepare(kind: Kind, record: NewRecord) -> PreparedRecord:
    """Clean and hash a record's text. The id keeps its form: one with NUL was refused at the door."""
    text = cleaned(kind.text(record))
    payload = cleaned_json(record.payload)
    return PreparedRecord(
        id=record.id,
        text=text,
        text_hash=records.text_hash(text),
        payload=payload,
        payload_json=records.payload_json(payload),
        parent=None if record.parent is None else cleaned(record.parent),
        status=None if record.status is None else cleaned(record.status),
        occurred_at=record.occurred_at,
        request_id=REQUEST_ID.get(),
    )
