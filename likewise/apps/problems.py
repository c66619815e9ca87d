"""The shape of an error: a problem of RFC 9457, where an app has none of its own; and how routes document it."""

from typing import Any, Protocol

from fastapi import Response
from pydantic import BaseModel, Field
from starlette.types import Scope

from likewise.apps.answers import Answer
from likewise.apps.body import MAX_FAULTS
from likewise.errors import LikewiseError
from likewise.observe.logs import REQUEST_ID

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


class ErrorShape(Protocol):
    """Renders an error for the routes under a path; headers that go with its status are added afterwards."""

    def __call__(self, error: LikewiseError, detail: str, scope: Scope, /) -> Response:
        """Return the response, whose sentence is `detail`: the caller may not know all of the error's own."""
        ...


class FaultOut(BaseModel):
    """One wrong place: a JSON pointer, a stable code and a sentence."""

    pointer: str
    code: str
    message: str


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
    errors: list[FaultOut]


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
