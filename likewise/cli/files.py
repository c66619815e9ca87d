"""Read files as records: folders, text, Markdown and JSON lines."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from likewise.apps.checking import NUMBER_TOO_LARGE, faults_of, parse_json
from likewise.apps.collections.schemas import RecordIn
from likewise.errors import LikewiseError, Malformed
from likewise.kind import NewRecord

TEXT = frozenset({".txt", ".text", ".md", ".markdown", ".rst"})
MARKDOWN = frozenset({".md", ".markdown"})
LINES = frozenset({".jsonl", ".ndjson"})
# The default model reads 256 tokens, about 1,200 characters; what is longer is cut between paragraphs.
PART_CHARS = 1_200
MAX_BYTES = 64 * 2**20

_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BLANK_LINE = re.compile(r"\n\s*\n")


class Unreadable(Exception):
    """A file or line cannot be read; the message says why."""


@dataclass
class Source:
    """A file and its records, or a folder that cannot be entered.

    The ids of the records begin with `name`; `shown` is what faults call the file. `continued`: more of a file of which
    the beginning came before.
    """

    name: str
    records: list[NewRecord] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    continued: bool = False
    shown: str = ""

    def __post_init__(self) -> None:
        """Let faults call the file by its name unless another is given, and reach the terminal as they are."""
        self.shown = _CONTROL.sub("\ufffd", (self.shown or self.name).encode("utf-8", "replace").decode())

    def refuse(self, why: str) -> "Source":
        """Leave the file out, with the reason."""
        self.records = []
        self.faults.append(f"{self.shown}: {why}")
        return self


def owner_of(path: Path) -> str:
    """Name the parent of the records of a folder, or of a file that is named by itself: its absolute path."""
    return str(path.resolve() if path.is_dir() else path.parent.resolve() / path.name)


def sources(path: Path) -> Iterator[Source]:
    """Read the files of a folder by name, or one file; what cannot be read comes with its faults.

    In a folder hidden entries and other kinds of files are passed over, and links are followed only to files within; a
    file that is named is read whatever its name, and its faults name it as it was. Names begin with that of the folder.
    """
    owner = owner_of(path)
    if path.is_dir():
        yield from _of_folder(path.resolve(), owner)
    else:
        yield source(path, path.name, owner, shown=str(path))


def count_files(path: Path) -> int:
    """Count about how many files `sources` will give, without reading any."""
    if not path.is_dir():
        return 1
    count = 0
    for _, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(map(_is_wanted, files))
    return count


def of_lines(lines: Iterable[bytes], name: str, owner: str | None = None, first: int = 1, *, shown: str = "") -> Source:
    """Read JSON lines as records; a line without an id is known by its number from `first` on, and is the owner's."""
    found = Source(name, continued=first > 1, shown=shown)
    for number, line in enumerate(lines, first):
        if line.strip():
            try:
                found.records.append(_of_line(line, f"{name}#{number}", owner))
            except Unreadable as error:
                found.faults.append(f"{found.shown}, line {number}: {error}")
    return found


def source(path: Path, name: str, owner: str, *, shown: str = "") -> Source:
    """Read one file."""
    found = Source(name, shown=shown)
    try:
        with open_regular(path) as file:
            if path.suffix.lower() in LINES:
                return of_lines(file, name, owner, shown=shown)
            text = _text(file)
        _check_name(name, owner)
    except Unreadable as error:
        return found.refuse(str(error))
    except OSError as error:
        return found.refuse(why_unreadable(error))
    pieces = _sections(text) if path.suffix.lower() in MARKDOWN else [("", piece) for piece in _pieces(text)]
    found.records.extend(_records(name, owner, pieces))
    return found


def _of_folder(folder: Path, owner: str) -> Iterator[Source]:
    failed: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=failed.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            path = Path(place, file)
            if _is_wanted(file):
                name = _named(path, folder)
                if _leads_out(path, folder):
                    yield Source(name).refuse("is a link that leads out of the folder")
                else:
                    yield source(path, name, owner)
    for error in failed:
        yield Source(_named(Path(error.filename), folder)).refuse(why_unreadable(error))


def _leads_out(path: Path, folder: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(folder)
    except RuntimeError:
        # Until Python 3.13 so it says that links lead to each other; opening the file says it better.
        return False


def why_unreadable(error: OSError) -> str:
    """Return the reason of the system, as the end of a sentence."""
    return (error.strerror or "cannot be read").lower()


def _is_wanted(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in TEXT | LINES


def _named(path: Path, folder: Path) -> str:
    return (folder.name / path.relative_to(folder)).as_posix()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file; Unreadable if it is another."""
    # A FIFO would be waited on for ever, so it is not opened before we know what it is.
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("is not a regular file")
    return path.open("rb")


def _text(file: BinaryIO) -> str:
    raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise Unreadable(f"is larger than {MAX_BYTES // 2**20} MiB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("is not text in UTF-8") from None
    if "\0" in text:
        raise Unreadable("is not text: it has NUL bytes")
    return text


def _check_name(name: str, owner: str) -> None:
    try:
        RecordIn(id=f"{name}#9999999", parent=owner, text="x")
    except ValidationError:
        raise Unreadable(
            "its path cannot be kept: 500 characters at most, in UTF-8, none of them control characters"
        ) from None


def _records(name: str, owner: str, pieces: list[tuple[str, str]]) -> Iterator[NewRecord]:
    for number, (heading, text) in enumerate(pieces, 1):
        payload = {"path": name, "part": number} | ({"heading": heading} if heading else {})
        yield NewRecord(name if len(pieces) == 1 else f"{name}#{number}", text, payload, parent=owner)


def _sections(text: str) -> list[tuple[str, str]]:
    """Cut Markdown at its headings, each part in pieces; every piece begins with its heading."""
    found: list[tuple[str, list[str]]] = [("", [])]
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        heading = None if fenced else _HEADING.match(line)
        if heading:
            found.append((heading[1], []))
        else:
            found[-1][1].append(line)
    return [
        (heading, f"{heading}\n\n{piece}" if heading else piece)
        for heading, lines in found
        for piece in _pieces("\n".join(lines))
    ]


def _pieces(text: str) -> list[str]:
    """Join paragraphs while they fit, and cut at spaces where one alone does not."""
    pieces: list[str] = []
    for paragraph in (part for whole in _BLANK_LINE.split(text) for part in _cut(whole.strip())):
        if pieces and len(pieces[-1]) + 2 + len(paragraph) <= PART_CHARS:
            pieces[-1] += "\n\n" + paragraph
        else:
            pieces.append(paragraph)
    return pieces


def _cut(paragraph: str) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > PART_CHARS:
        space = max(paragraph.rfind(mark, start + 1, start + PART_CHARS) for mark in " \n\t")
        end = space if space > 0 else start + PART_CHARS
        yield paragraph[start:end].strip()
        start = end
    if rest := paragraph[start:].strip():
        yield rest


def _of_line(line: bytes, otherwise: str, owner: str | None) -> NewRecord:
    try:
        value = parse_json(line)
        if not isinstance(value, dict):
            raise Unreadable("is not a JSON object")
        given = value if "id" in value else {"id": otherwise, "parent": owner} | value
        return RecordIn.model_validate(given).to_record()
    except ValidationError as error:
        fault = faults_of(error)[0]
        raise Unreadable(f"{fault.pointer or 'the line'}: {fault.message}") from None
    except Malformed as error:
        known = error.detail == NUMBER_TOO_LARGE
        raise Unreadable(error.detail if known else "is not valid JSON in UTF-8") from None
    except LikewiseError as error:
        raise Unreadable(error.detail) from None
