"""A query and texts to token ids, as a cross-encoder reads them together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from likewise.embedding.graphs.architectures import broken
from likewise.embedding.tokenizing import Ids, TextTokenizer


@dataclass(frozen=True)
class Pair:
    """One query and text: their ids with the special ones, where the text's type begins, and what did not fit."""

    ids: Ids
    second: int
    truncated: int


class PairTokenizer:
    """A model's own tokenizer, for pairs within its limit in tokens. Safe to use from several threads."""

    def __init__(self, path: Path, max_tokens: int, *, lowercase: bool = False, vocabulary: int | None = None) -> None:
        """The tokenizer in `path`; ModelUnavailable if it is none, or not that of a model with so many embeddings."""
        self._tokenizer = TextTokenizer(path, max_tokens, lowercase=lowercase, vocabulary=vocabulary)
        try:
            self._frame = self._tokenizer.pair()
        except (ValueError, IndexError):
            raise broken(path, "puts no pair of texts together that this version can read") from None
        self._room = max_tokens - self._frame.size
        if self._room < 2:
            raise broken(path, f"leaves no room for two texts within the model's {max_tokens} tokens")

    def encode(self, query: str, texts: Sequence[str]) -> list[Pair]:
        """The ids of the query with each text, cut to the limit. The query is read once for all of them."""
        asked = self._tokenizer.bare([query])[0]
        return [self._pair(asked, text) for text in self._tokenizer.bare(texts)]

    def _pair(self, query: Sequence[int], text: Sequence[int]) -> Pair:
        of_query, of_text = shares(len(query), len(text), self._room)
        frame = self._frame
        first = [*frame.before, *query[:of_query], *frame.between]
        ids = np.array([*first, *text[:of_text], *frame.after], np.int32)
        return Pair(ids, len(first) if frame.typed else len(ids), len(query) - of_query + len(text) - of_text)


def shares(query: int, text: int, room: int) -> tuple[int, int]:
    """How many tokens of each are read where so many have room: the longer one is cut, down to half of the room.

    Then both are cut, so that a long query leaves room for texts. That is `longest_first` of Hugging Face's
    `tokenizers`, by which cross-encoders are trained and run.
    """
    if query + text <= room:
        return query, text
    half = room // 2
    if query <= text:
        # An odd one is the longer text's.
        return (query, room - query) if query <= half else (half, room - half)
    return (room - text, text) if text <= half else (room - half, half)
