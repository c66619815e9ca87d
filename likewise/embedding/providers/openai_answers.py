"""The answer of an OpenAI-compatible `/embeddings`: vectors by index, and what was counted."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from likewise.embedding.provider import Counts, Matrix
from likewise.embedding.remote.errors import WrongAnswer

# More tokens than this are no count of anybody's texts.
MOST_TOKENS = 2**31 - 1
# A number as text has up to 24 characters, and a comma; what else there is of a text, and of an answer.
NUMBER_BYTES, ITEM_BYTES, ANSWER_BYTES = 32, 1_024, 64 * 2**10

Numbers = npt.NDArray[np.float64]


class OtherDimension(WrongAnswer):
    """All vectors have as many numbers as each other, and others than the model's."""

    def __init__(self, dimension: int) -> None:
        super().__init__(f"its vectors have {dimension} numbers")
        self.dimension = dimension


@dataclass(frozen=True)
class Answer:
    """What came for n texts, in their order.

    `vectors` float32 (n, d) of unit length; `truncated` int32 (n,), the tokens that were cut off of each; `tokens`,
    those that were read of all together, None if nobody counted them.
    """

    vectors: Matrix
    truncated: Counts
    tokens: int | None


def most_bytes(count: int, dimension: int) -> int:
    """What the vectors of so many texts take at most, however they are written."""
    return ANSWER_BYTES + count * (ITEM_BYTES + dimension * NUMBER_BYTES)


def read(body: bytes, count: int, dimension: int) -> Answer:
    """The answer for so many texts; WrongAnswer if any of them has no vector of so many finite numbers."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise WrongAnswer("it is no JSON") from None
    items = _in_order(answer, count)
    return Answer(_vectors(items, dimension), _truncated(items), _tokens(answer))


def _in_order(answer: Any, count: int) -> list[Mapping[str, Any]]:
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise WrongAnswer("it has no list of vectors")
    if len(data) != count:
        raise WrongAnswer(f"it has {len(data)} vectors for {count} texts")
    by_index = {item["index"]: item for item in data if _is_count(item.get("index"), count - 1)}
    if len(by_index) != count:
        raise WrongAnswer("its vectors do not have one index each")
    return [by_index[index] for index in range(count)]


def _vectors(items: Sequence[Mapping[str, Any]], dimension: int) -> Matrix:
    rows = [_numbers(item.get("embedding")) for item in items]
    lengths = {len(row) for row in rows}
    if lengths != {dimension}:
        raise OtherDimension(*lengths) if len(lengths) == 1 and 0 not in lengths else WrongAnswer("vectors differ")
    vectors = np.stack(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        raise WrongAnswer("one of its vectors is zero, or not finite")
    return np.asarray(vectors / norms, np.float32)


def _numbers(written: Any) -> Numbers:
    if isinstance(written, str):
        try:
            return np.frombuffer(base64.b64decode(written, validate=True), "<f4").astype(np.float64)
        except (binascii.Error, ValueError):
            raise WrongAnswer("one of its vectors is no base64 of numbers") from None
    try:
        numbers = np.array(written)
    except ValueError:
        raise WrongAnswer("one of its vectors is no list") from None
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiu":
        raise WrongAnswer("one of its vectors is no list of numbers")
    return numbers.astype(np.float64)


def _truncated(items: Sequence[Mapping[str, Any]]) -> Counts:
    """Tokens that were cut off, as another Likewise tells them."""
    cut = [item.get("truncated_tokens") for item in items]
    return np.array([one if _is_count(one) else 0 for one in cut], np.int32)


def _tokens(answer: Mapping[str, Any]) -> int | None:
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    counted: list[Any] = [usage.get(name) for name in ("prompt_tokens", "total_tokens")]
    # No text has none: those who answer 0 have not counted.
    return next((tokens for tokens in counted if _is_count(tokens) and tokens), None)


def _is_count(value: Any, most: int = MOST_TOKENS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
