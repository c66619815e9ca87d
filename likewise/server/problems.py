"""Errors as answers: RFC 9457 problems, or OpenAI's shape under `/v1/`."""

import re
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import Scope

from likewise.apps.body import MAX_FAULTS, fault_of, invalid
from likewise.apps.collections.schemas import FaultOut
from likewise.apps.deps import PROBLEM_JSON, Answer
from likewise.errors import (
    Fault,
    Internal,
    Invalid,
    LikewiseError,
    Malformed,
    MethodNotAllowed,
    ModelUnavailable,
    NotFound,
    Unauthorized,
)
from likewise.observe.request_id import REQUEST_ID

OPENAI_PATHS = "/v1/"
# LiteLLM goes by these words, and takes a 401 that says `invalid_request_error` for a wrong field.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# The rest of such a request is not read, so nothing else can follow on its connection.
_CLOSING = frozenset({408, 413, 414, 431})

# A folder of the machine; not the name of a model, which may have a slash too.
_PATH = re.compile(r"(?:^|[\s(,;])[/~]")


class Refused(LikewiseError):
    """The request is refused before it reaches a route."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail, code=status.name.lower())
        self.status = status.value


class Problem(BaseModel):
    """Why a request was not done (RFC 9457). `detail` and `errors` never repeat a value that was sent."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="Stable, in snake_case.")
    request_id: str
    retryable: bool = Field(description="Whether the same request may succeed later.")
    errors: list[FaultOut]


def as_likewise_error(error: Exception) -> LikewiseError:
    """The error of ours that an exception means; what we do not know is Internal and says nothing."""
    if isinstance(error, LikewiseError):
        return Internal() if error.status == Internal.status else error
    if isinstance(error, RequestValidationError):
        return invalid(_of_parameters(error))
    if isinstance(error, HTTPException):
        known = {404: NotFound, 405: MethodNotAllowed, 400: Malformed}.get(error.status_code)
        return known() if known else Refused(HTTPStatus(error.status_code), HTTPStatus(error.status_code).phrase)
    return Internal()


def _of_parameters(error: RequestValidationError) -> list[Fault]:
    """One fault for each parameter; `loc` is as in ("query", "limit", ...), and goes on where it may be absent."""
    faults: dict[Any, Fault] = {}
    for details in error.errors():
        place = details["loc"][1:2]
        faults.setdefault(place, fault_of(details, place))
    return list(faults.values())


def answer(error: LikewiseError, scope: Scope, headers: dict[str, str] | None = None, **members: Any) -> Answer:
    """The answer for an error, in the shape of the family of routes that was asked; `members` extend a problem."""
    status = error.status
    if str(scope.get("path", "")).startswith(OPENAI_PATHS):
        status = 400 if status == 422 else status
        content, media_type = _openai(error, status, told(error, scope)), "application/json"
    else:
        content, media_type = _problem(error, told(error, scope)) | members, PROBLEM_JSON
    return Answer(content, status, _headers(error) | (headers or {}), media_type)


def told(error: LikewiseError, scope: Scope) -> str:
    """The detail of an error as this caller may know it.

    Why a model is away names folders of the machine and addresses, which only those who run it can mend and should know
    of: without authentication that is whoever is on it.
    """
    if error.public_detail is not None and not _is_for_this_machine_only(scope):
        return error.public_detail
    if isinstance(error, ModelUnavailable) and _PATH.search(error.detail) and not _is_for_this_machine_only(scope):
        return "The model is not in service; the server's log and `likewise doctor` say why."
    return error.detail


def _is_for_this_machine_only(scope: Scope) -> bool:
    app = scope.get("app")
    return app is not None and bool(app.state.loopback_only)


def _problem(error: LikewiseError, detail: str) -> dict[str, Any]:
    request_id = REQUEST_ID.get() or ""
    return {
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


def _openai(error: LikewiseError, status: int, detail: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else _OPENAI_TYPES.get(status, "invalid_request_error")
    if not error.faults:
        return {"error": {"message": detail, "type": kind, "param": None, "code": error.code}}
    first = error.faults[0]
    parameter = first.pointer.strip("/").replace("/", ".")
    code = first.code if error.code == Invalid.code else error.code
    return {"error": {"message": detail, "type": kind, "param": parameter or None, "code": code}}


def _headers(error: LikewiseError) -> dict[str, str]:
    headers = {"cache-control": "no-store"}
    if error.retry_after is not None or error.status in (429, 503):
        # Callers must neither hammer nor give up: 1 to 120 seconds, whatever a part asks for.
        headers["retry-after"] = str(min(max(error.retry_after or 1, 1), 120))
    if error.status == Unauthorized.status:
        headers["www-authenticate"] = "Bearer"
    if error.status in _CLOSING:
        headers["connection"] = "close"
    return headers
