"""Text to search terms: words, stemmed and hashed to integers."""

import re
import threading
import unicodedata
from collections import Counter
from hashlib import blake2b
from itertools import chain, islice

import Stemmer

from likewise.db.terms import TERM_SPACE

# Recorded with every collection: terms of one analyzer are never compared with another's.
ANALYZER = "english-1"

# A sparsevec holds 16,000 entries; a text with more distinct words than half of that is a dump, not prose.
MOST_TERMS = 8_000

# Words so common that they say nothing of a text. Short on purpose: what is left is weighed by how rare it is.
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)

# Scripts that put no spaces between words are read as pairs of neighbouring characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+")
_WORD_ASCII = re.compile(r"\w+", re.ASCII)
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}]")
_PART = re.compile(r"[^_]+")
# A longer run is no word that anyone would ask for; its beginning still is one term.
_LONGEST_WORD = 64
# 40 MB at most, and more than the vocabulary of a large collection's common part.
MOST_KNOWN = 200_000


class _Stemmers(threading.local):
    """A stemmer for each thread: one keeps state while it works."""

    def __init__(self) -> None:
        self.english = Stemmer.Stemmer("english", 0)


_stemmers = _Stemmers()


def analyze(text: str) -> Counter[int]:
    """Count the terms of a text; keys are in 1..1,000,000,000. A text over the limit keeps its first terms."""
    return Counter(terms_of(text))


def terms_of(text: str) -> list[int]:
    """The terms of a text as they follow each other, each as often as it occurs."""
    words = _WORD_ASCII.findall(text.lower()) if text.isascii() else _WORD.findall(_folded(text))
    found = list(chain.from_iterable(map(_KNOWN.__getitem__, words)))
    if len(found) > MOST_TERMS:
        kept = frozenset(islice(dict.fromkeys(found), MOST_TERMS))
        found = [term for term in found if term in kept]
    return found


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


class _Known(dict[str, tuple[int, ...]]):
    """The terms of words seen before. Most words of a text are: reading them costs a look, and analysing 20."""

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(self) >= MOST_KNOWN:
            # Common words are back in a moment, and rare ones are most of what was here.
            self.clear()
        found = _terms(word[:_LONGEST_WORD])
        if len(word) <= _LONGEST_WORD:
            self[word] = found
        return found


_KNOWN = _Known()


def _terms(word: str) -> tuple[int, ...]:
    if _IS_UNSPACED.match(word):
        pairs = [word[at : at + 2] for at in range(max(1, len(word) - 1))]
        return tuple(_hash(pair) for pair in pairs)
    parts = _PART.findall(word)
    # `read_file` is found by itself and by each of its words.
    words = parts if len(parts) < 2 else [word, *parts]
    return tuple(_hash(_stemmers.english.stemWord(one)) for one in words if one not in STOP_WORDS)


def _hash(term: str) -> int:
    digest = blake2b(term.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest) % TERM_SPACE + 1
