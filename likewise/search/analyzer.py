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
MAX_TERMS = 8_000

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
_MAX_WORD = 64
# 40 MB at most, and more than the vocabulary of a large collection's common part.
MAX_KNOWN = 200_000
# Collections with a key of their own whose words are remembered: together as many as of all others.
MAX_KEYS = 1_000


class _Stemmers(threading.local):
    """A stemmer for each thread: one keeps state while it works."""

    def __init__(self) -> None:
        self.english = Stemmer.Stemmer("english", 0)


_stemmers = _Stemmers()


def analyze(text: str, key: bytes | None = None) -> Counter[int]:
    """Count the terms of a text; keys are in 1..1,000,000,000. A text over the limit keeps its first terms.

    Args:
        key: hashes the words, up to 64 bytes: without it nobody can tell which word a term is of.
    """
    return Counter(terms_of(text, key))


def terms_of(text: str, key: bytes | None = None) -> list[int]:
    """Return the terms of a text as they follow each other, each as often as it occurs."""
    words = _WORD_ASCII.findall(text.lower()) if text.isascii() else _WORD.findall(_folded(text))
    known = _KNOWN if key is None else _known_by(key)
    found = list(chain.from_iterable(map(known.__getitem__, words)))
    if len(found) > MAX_TERMS:
        kept = frozenset(islice(dict.fromkeys(found), MAX_TERMS))
        found = [term for term in found if term in kept]
    return found


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


class _Known(dict[str, tuple[int, ...]]):
    """The terms of words seen before. Most words of a text are: reading them costs a look, and analysing 20."""

    def __init__(self, key: bytes = b"") -> None:
        super().__init__()
        self._key = key

    def __missing__(self, word: str) -> tuple[int, ...]:
        self._make_room()
        found = _terms(word[:_MAX_WORD], self._key)
        if len(word) <= _MAX_WORD:
            self[word] = found
        return found

    def _make_room(self) -> None:
        if len(self) >= MAX_KNOWN:
            # Common words are back in a moment, and rare ones are most of what was here.
            self.clear()


class _KnownByKey(_Known):
    """The terms of words under one key. All keys share the room: their words are counted together."""

    words = 0

    def _make_room(self) -> None:
        if _KnownByKey.words >= MAX_KNOWN:
            _forget_keys()
            self.clear()
        _KnownByKey.words += 1


_KNOWN = _Known()
_known_by_key: dict[bytes, _KnownByKey] = {}


def _known_by(key: bytes) -> _KnownByKey:
    known = _known_by_key.get(key)
    if known is None:
        if len(_known_by_key) >= MAX_KEYS:
            _forget_keys()
        known = _known_by_key.setdefault(key, _KnownByKey(key))
    return known


def _forget_keys() -> None:
    _known_by_key.clear()
    _KnownByKey.words = 0


def _terms(word: str, key: bytes) -> tuple[int, ...]:
    if _IS_UNSPACED.match(word):
        pairs = [word[at : at + 2] for at in range(max(1, len(word) - 1))]
        return tuple(_hash(pair, key) for pair in pairs)
    parts = _PART.findall(word)
    # `read_file` is found by itself and by each of its words.
    words = parts if len(parts) < 2 else [word, *parts]
    return tuple(_hash(_stemmers.english.stemWord(one), key) for one in words if one not in STOP_WORDS)


def _hash(term: str, key: bytes) -> int:
    digest = blake2b(term.encode("utf-8", "replace"), digest_size=8, key=key).digest()
    return int.from_bytes(digest) % TERM_SPACE + 1
