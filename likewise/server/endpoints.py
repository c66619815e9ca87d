"""Every route says who may call it; one that does not keeps the server from starting."""

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from likewise.apps.deps import Requires, nobody_is_asked
from likewise.auth.caller import Scope
from likewise.errors import StartError


def refuse_undeclared(app: FastAPI) -> None:
    """StartError that names a route which anybody could call because somebody forgot to say who may."""
    for route in all_routes(app.routes):
        scope_of(route)


def all_routes(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes, those of included routers too."""
    for route in routes:
        # FastAPI keeps included routers as they are since 0.130, and copied their routes before.
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from all_routes(included.routes)


def scope_of(route: Any) -> Scope | None:
    """The scope that callers of a route need, None if it is open to everybody; StartError if it does not say.

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
