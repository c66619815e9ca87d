"""The application: its routers, and the layers around them."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Match

from likewise.apps.registry import APPS, App
from likewise.library import Likewise
from likewise.observe.version import program_version
from likewise.server import openapi, operations
from likewise.server.bodies import BodyLimit
from likewise.server.concurrency import RequestLimit
from likewise.server.endpoints import RouteTable
from likewise.server.middleware import AddressGuard, Errors, RequestLog
from likewise.server.problems import answer, as_likewise_error, shapes_of
from likewise.settings import Settings

ROUTERS = (operations.router, openapi.router)

if TYPE_CHECKING:
    # Older versions of FastAPI have none of it, and take the option all the same.
    from fastapi.telemetry import TelemetryConfig

Opener = Callable[[], AbstractAsyncContextManager[Likewise]]

# FastAPI's own spans hold paths and queries, and its log records the messages of errors: ours say no more than numbers.
_NO_TELEMETRY: "TelemetryConfig" = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

_DESCRIPTION = (
    "A request may be refused before it reaches a route, with a Problem too: 400 (no Host), 403 and 421 (without "
    "authentication: not from or for this machine), 405, 408 (too slow), 414 and 431 (too long), 503 (too many)."
)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def create_app(source: Likewise | Opener, settings: Settings, *, apps: Sequence[App] = ()) -> FastAPI:
    """Return the application over an open library, or over one that it opens when it starts and closes when it ends.

    Args:
        apps: those that were opened beside Likewise's own.
    """
    rows = (*APPS, *apps)
    table = RouteTable()
    app = FastAPI(
        title="Likewise",
        version=program_version(),
        summary="A self-hosted embedding and similarity engine.",
        description=_DESCRIPTION,
        lifespan=_opening(source) if callable(source) else None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
        # FastAPI's pages load scripts from elsewhere, onto the origin of an API that asks nobody who they are.
        docs_url=None,
        redoc_url=None,
        # And its own route to the document says nothing of who may call it.
        openapi_url=None,
        middleware=[
            Middleware(RequestLog),
            Middleware(Errors),
            Middleware(RequestLimit, find=table.find),
            Middleware(AddressGuard, loopback_only=not settings.asks_who_calls),
            Middleware(BodyLimit, limit=settings.max_body_bytes, stream_limit=settings.max_stream_bytes),
        ],
        exception_handlers={HTTPException: _refusal, RequestValidationError: _refusal},
    )
    app.state.draining = False
    app.state.error_shapes = shapes_of(rows)
    app.state.loopback_only = not settings.asks_who_calls
    if not callable(source):
        app.state.likewise = source
    for router in (*ROUTERS, *(row.load(name) for row in rows for name in row.routers)):
        # Not included: FastAPI then looks for the route of each request twice, in every router before its own.
        app.router.routes.extend(router.routes)
    table.read(app)
    openapi.describe(app, settings.auth)
    return app


def _opening(opener: Opener) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opener() as opened:
            app.state.likewise = opened
            yield

    return lifespan


async def _refusal(request: Request, error: Exception) -> Response:
    """Render the framework's own refusals in our shapes."""
    known = as_likewise_error(error)
    headers = {"allow": ", ".join(_allowed(request))} if known.status == 405 else None
    return answer(known, request.scope, headers)


def _allowed(request: Request) -> list[str]:
    """The methods that an address takes. The framework names those of the first route that fits, and no others."""
    routes: list[Any] = request.app.routes
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [method for method, one in scopes.items() if any(route.matches(one)[0] is Match.FULL for route in routes)]
