"""Answers in JSON; those with many numbers are written without holding up the other requests."""

import asyncio
import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import Response

# Writing so many numbers as JSON takes some milliseconds, in which nothing else runs.
NUMBERS_AT_A_TIME = 65_536


class Answer(Response):
    """A JSON answer. Dataclasses are written as objects and times as RFC 3339 in UTC."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Write the content as JSON."""
        return orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC)


def written(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object, vectors included."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def with_rows(head: Mapping[str, Any], name: str, rows: Iterable[Any], width: int) -> bytes:
    """Return a JSON object: the members of `head`, and as `name` a list of rows of about `width` numbers each."""
    parts: list[bytes] = []
    at_a_time = max(1, NUMBERS_AT_A_TIME // max(1, width))
    for place, row in enumerate(rows, 1):
        parts.append(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))
        if place % at_a_time == 0:
            await asyncio.sleep(0)
    begin = written(head)[:-1]
    return b"%b%b%b:[%b]}" % (begin, b"," if head else b"", orjson.dumps(name), b",".join(parts))


def json_answer(body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer that is written already."""
    return Response(body, headers=dict(headers or {}), media_type="application/json")


def as_base64(vector: npt.NDArray[np.generic]) -> str:
    """Return a vector as OpenAI's clients ask for it: little-endian float32 in the standard alphabet."""
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
