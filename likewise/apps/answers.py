"""Answers: in JSON, where many numbers are written without holding up the other requests, and the shapes of errors.

An error is a problem of RFC 9457, where an app has no shape of its own.
"""

import asyncio
import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import Response
from pydantic import BaseModel, Field
from starlette.types import Scope

from likewise.apps.checking import MAX_FAULTS
from likewise.errors import Fault, LikewiseError
from likewise.observe.logs import REQUEST_ID

# Writing so many numbers as JSON takes some milliseconds, in which nothing else runs.
NUMBERS_AT_A_TIME = 65_536
PROBLEM_JSON = "application/problem+json"

REFUSALS = {
    400: "The body, or the address, cannot be read.",
    401: "No or bad credentials.",
    403: "The credentials do not allow this.",
    404: "There is nothing at this address.",
    409: "The request does not fit the present state.",
    413: "The body, or what it asks for, is too large.",
    415: "Wrong media type.",
    422: "A field is wrong; `errors` names each by a JSON pointer.",
    429: "This caller has used up its quota or its share; `Retry-After` says when to come back.",
    500: "The server failed; its log has the reason under `request_id`.",
    503: "A part of the server is away; `Retry-After` says when to come back.",
}
BODY_REFUSALS = (400, 413, 415, 422)


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


# Renders an error for the routes under a path. Its sentence is the second argument: the caller may not know all of the
# error's own. Headers that go with its status are added afterwards.
ErrorShape = Callable[[LikewiseError, str, Scope], Response]


class Problem(BaseModel):
    """The reason why a request was not done (RFC 9457). `detail` and `errors` never repeat a value that was sent."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="Stable, in snake_case.")
    request_id: str
    retryable: bool = Field(description="Whether the same request may succeed later.")
    errors: list[Fault]


def problem(error: LikewiseError, detail: str, _: Scope, /, **members: Any) -> Response:
    """Return a problem; `members` extend it. An ErrorShape."""
    request_id = REQUEST_ID.get() or ""
    content = {
        "type": f"urn:likewise:problem:{error.code}",
        "title": (type(error).__doc__ or "").partition("\n")[0],
        "status": error.status,
        "detail": detail,
        "instance": f"urn:likewise:request:{request_id}",
        "code": error.code,
        "request_id": request_id,
        "retryable": error.retryable,
        "errors": error.faults[:MAX_FAULTS],
    }
    return Answer(content | members, error.status, media_type=PROBLEM_JSON)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documented error answers of a route; 500 and 503 belong to every one."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": REFUSALS[status], "content": {PROBLEM_JSON: schema}}
        for status in sorted({*statuses, 500, 503})
    }
