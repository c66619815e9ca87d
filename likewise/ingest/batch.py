"""A batch of records on its way in: refused where it cannot be stored as it is, else cleaned and hashed."""

from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256

from likewise.cleaning import cleaned, cleaned_json, fit_for_id, is_json
from likewise.db.collections import CollectionRow, ViewRow
from likewise.db.contents import PreparedContent, text_hash
from likewise.db.records import PreparedRecord, payload_json
from likewise.embedding.embedder import Embedder
from likewise.errors import Conflict, Fault, Invalid
from likewise.kind import Kind, NewRecord, View
from likewise.observe.logs import REQUEST_ID

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


def refuse_repeats(ids: Sequence[str], pointer: str, message: str) -> None:
    """Refuse texts with one id, of which none can be known to count: Invalid, with a fault for each repetition.

    Args:
        pointer: where an id is in the request, with `{}` for its place in the batch.
    """
    seen: set[str] = set()
    faults = []
    for place, one in enumerate(ids):
        if one in seen:
            faults.append(Fault(pointer.format(place), "duplicate_id", message))
        seen.add(one)
    if faults:
        raise Invalid(message, faults=faults)


async def refuse_long(embedder: Embedder, collection: CollectionRow, kind: Kind, batch: Sequence[NewRecord]) -> None:
    """Raise Invalid with a fault for each text of which the model of its view would cut off the end."""
    await _refuse_long(embedder, collection.active.model, dict(enumerate(map(kind.text, batch))))
    for row, view in views_beside(collection, kind):
        if row.generation is not None and view.text is not None:
            read = enumerate(map(view.text, batch))
            await _refuse_long(embedder, row.generation.model, {at: text for at, text in read if text is not None})


async def _refuse_long(embedder: Embedder, model: str, texts: Mapping[int, str]) -> None:
    """Refuse texts, given by their places in a batch."""
    places = list(texts)
    max_tokens = (await embedder.opened(model)).max_tokens
    try:
        lengths = await embedder.lengths(list(texts.values()), model)
    except Invalid as error:
        raise error.moved("/texts", lambda at: f"/{places[at]}/text") from None
    message = f"This collection refuses texts that its model would cut off: at most {max_tokens} tokens."
    faults = [
        Fault(f"/{place}/text", "text_too_long", message)
        for place, length in zip(places, lengths, strict=True)
        if length > max_tokens
    ]
    if faults:
        raise Invalid(message, code="text_too_long", faults=faults)


def views_beside(collection: CollectionRow, kind: Kind) -> list[tuple[ViewRow, View]]:
    """Return the views beside the first that a collection was made with, each with what its kind declares of it.

    Raises:
        Conflict: the kind makes vectors of another space by now.
    """
    declared = {view.name: view for view in kind.beside}
    views = [(row, declared[row.name]) for row in collection.beside if row.name in declared]
    for row, view in views:
        if view.is_made and row.generation is not None and row.generation.space != view.space:
            message = f"The vectors of the view {row.name} are of another space than those that are made now."
            raise Conflict(f"{message} Make a new collection.", code="model_differs")
    return views


def prepare_batch(
    kind: Kind, batch: Sequence[NewRecord], beside: Sequence[tuple[ViewRow, View]] = ()
) -> list[PreparedRecord]:
    """Prepare the records of a batch, in the order of their ids, in which they are locked."""
    return sorted((prepare(kind, record, beside) for record in batch), key=lambda record: record.id)


def prepare(kind: Kind, record: NewRecord, beside: Sequence[tuple[ViewRow, View]] = ()) -> PreparedRecord:
    """Clean and hash a record's texts. The id keeps its form: one with NUL was refused at the door."""
    text = cleaned(kind.text(record))
    request_id = REQUEST_ID.get()
    payload = cleaned_json(record.payload)
    return PreparedRecord(
        id=record.id,
        text=text,
        text_hash=text_hash(text),
        payload=payload,
        payload_json=payload_json(payload),
        parent=None if record.parent is None else cleaned(record.parent),
        status=None if record.status is None else cleaned(record.status),
        occurred_at=record.occurred_at,
        request_id=request_id,
        beside=_prepared_beside(beside, record, request_id) if beside else (),
    )


def _prepared_beside(
    beside: Sequence[tuple[ViewRow, View]], record: NewRecord, request_id: str | None
) -> tuple[PreparedContent, ...]:
    """The contents of a record in the views beside the first."""
    contents = (_prepared_in(row, view, record, request_id) for row, view in beside)
    return tuple(one for one in contents if one is not None)


def _prepared_in(row: ViewRow, view: View, record: NewRecord, request_id: str | None) -> PreparedContent | None:
    if view.vector is not None and view.made_from is not None:
        made_from = view.made_from(record)
        if made_from is None:
            return None
        digest = sha256(made_from).digest()
        return PreparedContent(row.number, digest, None, request_id, False, partial(view.vector, record))
    read = view.text(record) if view.text is not None else None
    if read is None:
        return None
    text = cleaned(read)
    return PreparedContent(row.number, text_hash(text), text, request_id, view.embedded)
