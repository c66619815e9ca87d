"""What verbs print: answers on stdout, words about the work on stderr."""

import re
import sys
from typing import Any, Protocol

import orjson

# Texts are other people's: an escape sequence in one must not reach the terminal.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text without characters that steer a terminal."""
    return _UNPRINTABLE.sub("\ufffd", text)


def say(text: str = "") -> None:
    """A line of an answer, on stdout."""
    print(printable(text), flush=True)


def say_json(value: Any) -> None:
    """An answer as one line of JSON, on stdout."""
    print(orjson.dumps(value, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC).decode(), flush=True)


def note(text: str) -> None:
    """A line about the work, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def in_a_line(text: str, width: int = 100) -> str:
    """The beginning of a text as one line of at most this many characters."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else several or one + 's'}"


class Scored(Protocol):
    """What was found, as far as its place in the list goes."""

    @property
    def score(self) -> float:
        """What orders the hits of one search."""
        ...

    @property
    def similarity(self) -> float | None:
        """The cosine."""
        ...


def scores(hit: Scored) -> str:
    """The score that orders the hits, then the cosine similarity."""
    similarity = "  -  " if hit.similarity is None else f"{hit.similarity:.3f}"
    return f"{hit.score:.3f}  {similarity}"
