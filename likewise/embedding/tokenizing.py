"""Texts to token ids, with exact counts of those that were read and those that were cut off."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from semantic_text_splitter import TextSplitter
from tokenizers import Encoding, Tokenizer

from likewise.embedding.graphs.architectures import broken

Ids = npt.NDArray[np.int32]

RUN = 1_000
# From where a run begins only: tried at every character of runs that are just short enough, 200,000 took half a second.
LONG_RUN = re.compile(rf"(?<!\S)\S{{{RUN + 1},}}")
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class EncodedText:
    """One text as the model reads it: its ids with the special ones, and the number that did not fit.

    `chars_read` counts characters of the text itself, without a prefix.
    """

    ids: Ids
    truncated: int
    chars_read: int


@dataclass(frozen=True)
class PairFrame:
    """The special ids before, between and after two texts. `typed`: the ids after `between` are of another type."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    typed: bool

    @property
    def size(self) -> int:
        """The number of special ids."""
        return len(self.before) + len(self.between) + len(self.after)


class TextTokenizer:
    """A model's own tokenizer, with its limit in tokens. Safe to use from several threads."""

    def __init__(self, path: Path, max_tokens: int, *, lowercase: bool = False, vocabulary: int | None = None) -> None:
        """Read the tokenizer in `path`; ModelUnavailable if it is none, or not of a model with so many embeddings."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._before, self._after = self._special_ids()
        except Exception as error:  # the library raises bare Exception
            raise broken(path, "is not a tokenizer") from error
        self._lowercase = lowercase
        self._room = max_tokens - len(self._before) - len(self._after)
        if vocabulary is not None and max(self._tokenizer.get_vocab().values(), default=0) >= vocabulary:
            raise broken(path, f"has token ids beyond the model's {vocabulary} embeddings")
        if self._room < 1:
            raise broken(path, f"leaves no room for a text within the model's {max_tokens} tokens")

    def encode(self, texts: Sequence[str], prefix: str = "") -> list[EncodedText]:
        """Encode each text to ids, cut to the limit."""
        prepared = [prefix + self._prepare(text) for text in texts]
        encodings = self._tokenizer.encode_batch(prepared, add_special_tokens=False)
        return [self._cut(text, encoding, len(prefix)) for text, encoding in zip(texts, encodings, strict=True)]

    def lengths(self, texts: Sequence[str], prefix: str = "") -> list[int]:
        """Count the tokens of each text with the special ones, before anything is cut off."""
        special = len(self._before) + len(self._after)
        prepared = [prefix + self._prepare(text) for text in texts]
        return [special + len(each) for each in self._tokenizer.encode_batch_fast(prepared, add_special_tokens=False)]

    def prefix_length(self, prefix: str) -> int:
        """Count the tokens of a prefix, with the special ones that come before it."""
        return len(self._before) + len(self._tokenizer.encode(prefix, add_special_tokens=False))

    def splitter(self, max_tokens: int, overlap: int, prefix: str = "") -> TextSplitter:
        """Return a splitter to parts of at most so many tokens, the special ones and a prefix included."""
        special = len(self._after) + self.prefix_length(prefix)
        room = max(1, min(max_tokens, self._room + len(self._before) + len(self._after)) - special)
        return TextSplitter.from_huggingface_tokenizer(self._tokenizer, room, min(overlap, room - 1))

    def as_split(self, text: str) -> str:
        """Return a text as its parts are read, at the same length."""
        lower = text.lower() if self._lowercase else text
        # Few letters become two.
        return lower if len(lower) == len(text) else text

    def bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text to ids without the special ones, however many."""
        prepared = [self._prepare(text) for text in texts]
        return [each.ids for each in self._tokenizer.encode_batch_fast(prepared, add_special_tokens=False)]

    def pair(self) -> "PairFrame":
        """Find the ids around and between two texts; ValueError where the texts themselves are changed."""
        one, both = self._tokenizer.encode("a", add_special_tokens=False).ids, self._tokenizer.encode("a", "a")
        places = [at for at in range(len(both.ids)) if both.ids[at : at + len(one)] == one]
        first, second = places[0], places[-1]
        end = first + len(one)
        if not one or second < end:
            raise ValueError("its pairs are not two texts")
        types = {tuple(both.type_ids[:second]), tuple(both.type_ids[second:])}
        typed = types == {(0,) * second, (1,) * (len(both.ids) - second)}
        if not typed and any(both.type_ids):
            raise ValueError("the types of its pairs change within a text")
        return PairFrame(
            tuple(both.ids[:first]), tuple(both.ids[end:second]), tuple(both.ids[second + len(one) :]), typed
        )

    @property
    def has_types(self) -> bool:
        """True if tokens have other types than the first."""
        return any(self._tokenizer.encode("a").type_ids)

    def _prepare(self, text: str) -> str:
        # the tokenizer takes UTF-8 only; and its time may grow faster than an unbroken run does
        clean = _SURROGATES.sub("\ufffd", text)
        split = LONG_RUN.sub(_split_run, clean) if len(clean) > RUN else clean
        return split.lower() if self._lowercase else split

    def _cut(self, text: str, encoding: Encoding, prefix: int) -> EncodedText:
        excess = max(0, len(encoding) - self._room)
        kept = encoding.ids[: self._room] if excess else encoding.ids
        ids = np.array([*self._before, *kept, *self._after], np.int32)
        chars = _chars_read(text, encoding, len(kept), prefix) if excess else len(text)
        return EncodedText(ids, excess, chars)

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """Find the special ids before and after a text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a").ids
        start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return full[:start], full[start + len(bare) :]


def _split_run(run: re.Match[str]) -> str:
    text = run.group()
    return " ".join(text[i : i + RUN] for i in range(0, len(text), RUN))


def _chars_read(text: str, encoding: Encoding, kept: int, prefix: int) -> int:
    """Count the characters of the text up to the end of its last token that was read."""
    span = encoding.token_to_chars(kept - 1) if kept else None
    end = max(0, span[1] - prefix) if span else 0
    return min(len(text), end - _spaces_added(text, end))


def _spaces_added(text: str, end: int) -> int:
    """Count the spaces that split long runs among the first `end` characters."""
    added = 0
    for run in LONG_RUN.finditer(text):
        length = run.end() - run.start()
        inside = end - added - run.start()
        if inside <= 0:
            break
        added += min(inside // (RUN + 1), (length - 1) // RUN)
    return added
