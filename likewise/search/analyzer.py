"""Text to search terms: words, stemmed and hashed to integers."""

import re
import threading
import unicodedata
from collections import Counter
from functools import lru_cache
from hashlib import blake2b

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
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}]")
_PART = re.compile(r"[^_]+")
# A longer run is no word that anyone would ask for; its beginning still is one term.
_LONGEST_WORD = 64


class _Stemmers(threading.local):
    """A stemmer for each thread: one keeps state while it works."""

    def __init__(self) -> None:
        self.english = Stemmer.Stemmer("english", 0)


_stemmers = _Stemmers()


def analyze(text: str) -> Counter[int]:
    """Count the terms of a text; keys are in 1..1,000,000,000. A text over the limit keeps its first terms."""
    counts: Counter[int] = Counter()
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        for term in _terms(match.group()[:_LONGEST_WORD]):
            if term in counts or len(counts) < MOST_TERMS:
                counts[term] += 1
    return counts


@lru_cache(maxsize=200_000)
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
