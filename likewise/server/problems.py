"""Errors as answers, in the shape of the app that was asked."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from likewise.apps.answers import ErrorShape, problem
from likewise.apps.checking import fault_of, invalid
from likewise.apps.registry import App, loaded
from likewise.errors import Fault, Internal, LikewiseError, Malformed, MethodNotAllowed, NotFound, Unauthorized

# The rest of such a request is not read, so nothing else can follow on its connection.
_CLOSING = frozenset({408, 413, 414, 431})


class Rejection(LikewiseError):
    """The request is refused before it reaches a route."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail, code=status.name.lower())
        self.status = status.value


def as_likewise_error(error: Exception) -> LikewiseError:
    """Return our error for an exception; one that we do not know is Internal and says nothing."""
    if isinstance(error, LikewiseError):
        return Internal() if error.status == Internal.status else error
    if isinstance(error, RequestValidationError):
        return invalid(_of_parameters(error))
    if isinstance(error, HTTPException):
        known = {404: NotFound, 405: MethodNotAllowed, 400: Malformed}.get(error.status_code)
        return known() if known else Rejection(HTTPStatus(error.status_code), HTTPStatus(error.status_code).phrase)
    return Internal()


def _of_parameters(error: RequestValidationError) -> list[Fault]:
    """One fault for each parameter; `loc` is as in ("query", "limit", ...), and goes on where it may be absent."""
    faults: dict[Any, Fault] = {}
    for details in error.errors():
        place = details["loc"][1:2]
        faults.setdefault(place, fault_of(details, place))
    return list(faults.values())


def answer(error: LikewiseError, scope: Scope, headers: dict[str, str] | None = None) -> Response:
    """Return the answer for an error, in the shape that the app has whose routes were asked."""
    return with_headers(_shape_at(scope)(error, detail_for(error, scope), scope), error, headers)


def with_headers(response: Response, error: LikewiseError, headers: dict[str, str] | None = None) -> Response:
    """Return the response with the headers that go with an error's status."""
    response.headers.update(_headers(error) | (headers or {}))
    return response


def detail_for(error: LikewiseError, scope: Scope) -> str:
    """Return the detail of an error as this caller may know it.

    Why a model is away names folders of the machine and addresses, which only those who run it can change and should
    know of: without authentication that is whoever is on it.
    """
    return error.detail if error.public_detail is None or _is_for_this_machine_only(scope) else error.public_detail


def shapes_of(apps: Iterable[App]) -> list[tuple[str, ErrorShape]]:
    """Return the shapes of the apps' errors by the beginning of the path, the longest first."""
    return sorted(loaded(apps, "errors").items(), key=lambda one: -len(one[0]))


def _shape_at(scope: Scope) -> ErrorShape:
    app, path = scope.get("app"), str(scope.get("path", ""))
    shapes = app.state.error_shapes if app is not None else ()
    return next((shape for beginning, shape in shapes if path.startswith(beginning)), problem)


def _is_for_this_machine_only(scope: Scope) -> bool:
    app = scope.get("app")
    return app is not None and bool(app.state.loopback_only)


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
