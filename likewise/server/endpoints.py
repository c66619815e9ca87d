"""The endpoints of the application: what each declares, known before anything of a request's body is read."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import Scope as RequestScope

from likewise.apps.declaration import RouteDeclaration, declaration_of
from likewise.apps.deps import Requires, nobody_is_asked
from likewise.auth.caller import Scope
from likewise.errors import StartError


class RouteTable:
    """The declarations of an application's routes, by method and path."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], RouteDeclaration] = {}
        self._patterns: dict[str, list[tuple[re.Pattern[str], RouteDeclaration]]] = {}

    def read(self, app: FastAPI) -> None:
        """Take in all routes of an application.

        Raises:
            StartError: a route that anybody could call, or that nobody could admit, because somebody forgot to say so.
        """
        for route in all_routes(app.routes):
            scope_of(route)
            declared = declaration_of(route.endpoint)
            if declared is None:
                raise StartError(
                    f"The route {route.path} does not say how it loads the server, and which body it takes. "
                    "Put @declares of likewise.apps.declaration under its path."
                )
            for method in route.methods:
                if "{" in route.path:
                    self._patterns.setdefault(method, []).append((route.path_regex, declared))
                else:
                    self._exact.setdefault((method, route.path), declared)

    def find(self, request: RequestScope) -> RouteDeclaration | None:
        """Return what the route declares that a request goes to; None if it goes to none."""
        method, path = request["method"], request["path"]
        found = self._exact.get((method, path))
        if found is not None:
            return found
        return next((one for pattern, one in self._patterns.get(method, ()) if pattern.match(path)), None)


def all_routes(routes: Iterable[Any]) -> Iterator[Any]:
    """Return the routes, those of included routers too."""
    for route in routes:
        # FastAPI keeps included routers as they are since 0.130, and copied their routes before.
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from all_routes(included.routes)


def scope_of(route: Any) -> Scope | None:
    """Return the scope that callers of a route need, None if it is open to everybody; StartError if it does not say.

    It says so first: dependencies are settled in their order, and those that follow read what the request holds.
    """
    dependencies = route.dependant.dependencies if isinstance(route, APIRoute) else []
    first = dependencies[0].call if dependencies else None
    if isinstance(first, Requires):
        return first.scope
    if first is not nobody_is_asked:
        raise StartError(
            f"The route {getattr(route, 'path', 'without a path')} does not say who may call it. "
            "Let its first parameter be a CanRead, CanWrite, CanAdminister or Anyone of likewise.apps.deps."
        )
    return None
