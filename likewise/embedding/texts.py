"""Texts before they are embedded: which can be, and about how long they are."""

from collections.abc import Sequence

from likewise.errors import Fault, Invalid

MAX_CHARS = 200_000
CHARS_PER_TOKEN = 4  # English prose and WordPiece; an estimate is enough to bound a queue


def refuse_unreadable(texts: Sequence[str]) -> None:
    """Raise Invalid, with a fault for each text that is none, blank or too long."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise Invalid.at("/texts", "Texts come as a list, one of them as a list of one.", "wrong_type")
    faults = [fault for place, text in enumerate(texts) if (fault := _fault(place, text))]
    if faults:
        raise Invalid(faults[0].message, faults=faults)


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has, without a tokenizer."""
    return len(text) // CHARS_PER_TOKEN + 1


def _fault(place: int, text: object) -> Fault | None:
    if not isinstance(text, str):
        return Fault(f"/texts/{place}", "wrong_type", "This is no text.")
    if len(text) > MAX_CHARS:
        message = f"This text has more than {MAX_CHARS:,} characters; split it into parts."
        return Fault(f"/texts/{place}", "too_long", message)
    if not text or text.isspace():
        return Fault(f"/texts/{place}", "blank", "This text is blank; leave it out.")
    return None
