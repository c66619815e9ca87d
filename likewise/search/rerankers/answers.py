"""The answer of a `/rerank`: scores by index, and what was counted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from likewise.embedding.provider import Vector
from likewise.embedding.remote.errors import WrongAnswer

# More tokens than this are no count of anybody's texts.
MOST_TOKENS = 2**31 - 1
# What there is of a text besides its own words, and of an answer.
ITEM_BYTES, ANSWER_BYTES = 512, 64 * 2**10
# A character of JSON has up to six bytes for each of UTF-8.
ESCAPED = 6


@dataclass(frozen=True)
class Answer:
    """Scores float32 (n,) of 0 to 1 in the order of the texts, and the tokens read, None if nobody counted them."""

    scores: Vector
    tokens: int | None


def most_bytes(texts: Sequence[str]) -> int:
    """What an answer takes at most, with the texts in it, as some servers have it."""
    return ANSWER_BYTES + sum(ITEM_BYTES + ESCAPED * len(text.encode()) for text in texts)


def read(body: bytes, count: int) -> Answer:
    """The answer for so many texts; WrongAnswer if any of them has no score of 0 to 1."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise WrongAnswer("it is no JSON") from None
    # TEI answers the bare list.
    results = answer.get("results") if isinstance(answer, dict) else answer
    if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
        raise WrongAnswer("it has no list of results")
    if len(results) != count:
        raise WrongAnswer(f"it has {len(results)} results for {count} texts")
    by_index = {item["index"]: _score(item) for item in results if _is_count(item.get("index"), count - 1)}
    if len(by_index) != count:
        raise WrongAnswer("its results do not have one index each")
    scores = np.array([by_index[index] for index in range(count)], np.float32)
    return Answer(scores, _tokens(answer) if isinstance(answer, dict) else None)


def _score(item: Mapping[str, Any]) -> float:
    score = item.get("relevance_score", item.get("score"))
    if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
        raise WrongAnswer("one of its scores is no finite number")
    if not 0 <= score <= 1:
        raise WrongAnswer("one of its scores is not between 0 and 1")
    return float(score)


def _tokens(answer: Mapping[str, Any]) -> int | None:
    """As Jina and vLLM tell it, or Cohere."""
    usage, meta = answer.get("usage"), answer.get("meta")
    of_meta = meta.get("tokens") if isinstance(meta, dict) else None
    told = [usage.get("total_tokens")] if isinstance(usage, dict) else []
    told += [of_meta.get("input_tokens")] if isinstance(of_meta, dict) else []
    # No pair has none: those who answer 0 have not counted.
    return next((tokens for tokens in told if _is_count(tokens) and tokens), None)


def _is_count(value: Any, most: int = MOST_TOKENS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
