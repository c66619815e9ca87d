"""The routes of those who watch over the server: probes, metrics for Prometheus, and the page at its address."""

import asyncio
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from likewise.apps.answers import Answer, problem, refusals
from likewise.apps.declaration import Load, declares
from likewise.apps.deps import Anyone
from likewise.db import waiting
from likewise.db.checkup import waiting_estimate
from likewise.db.pool import Pool
from likewise.errors import LikewiseError, ModelUnavailable, NotFound, Unauthorized, Unavailable
from likewise.library import Likewise
from likewise.observe.metrics import CONTENT_TYPE, OTHER, MetricsSnapshot, exposition
from likewise.observe.version import program_version
from likewise.server.problems import answer, detail_for, with_headers
from likewise.settings import Settings

# A database that hangs must not make a probe or a scrape hang, and many scrapers cost it no more than one.
PROBE_SECONDS = 3.0
ASK_SECONDS = 2.0
KEPT_SECONDS = 5.0

router = APIRouter(tags=["operations"])


class HealthAnswer(BaseModel):
    """`ready`, or `degraded` with the parts that are away; null is a part that works."""

    status: str
    parts: dict[str, str | None]


@router.head("/livez", include_in_schema=False)
@router.get("/livez", response_model=dict[str, str])
@declares(Load.PROBE)
async def alive(_: Anyone) -> Answer:
    """The process answers."""
    return Answer({"status": "alive"})


@router.head("/healthz", include_in_schema=False)
@router.head("/readyz", include_in_schema=False)
@router.get("/healthz", response_model=HealthAnswer, responses=refusals(422))
@router.get("/readyz", response_model=HealthAnswer, responses=refusals(422))
@declares(Load.PROBE)
async def ready(_: Anyone, request: Request, strict: bool = False) -> Response:
    """Readiness: 503 without a usable database or while stopping; `strict` wants every part."""
    if request.app.state.draining:
        return answer(Unavailable("The server is stopping.", code="stopping", retry_after=5), request.scope)
    parts = await _parts(request)
    away = [name for name, reason in parts.items() if reason is not None]
    if parts["database"] or parts["schema"] or (strict and away):
        error = Unavailable(f"Not working: {', '.join(away)}.", code="not_ready", retry_after=5)
        return with_headers(problem(error, error.detail, request.scope, parts=parts), error)
    return Answer({"status": "degraded" if away else "ready", "parts": parts})


@router.get("/", include_in_schema=False)
@declares(Load.OTHER)
async def what_is_here(_: Anyone) -> Answer:
    """A page for those who open the server's address."""
    return Answer(
        {
            "name": "likewise",
            "version": program_version(),
            "links": {
                "documentation": "/docs",
                "openapi": "/openapi.json",
                "collections": "/api/v1/collections",
                "health": "/healthz",
            },
        }
    )


async def _parts(request: Request) -> dict[str, Any]:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            health = await request.app.state.likewise.health()
    except TimeoutError:
        return {"database": "It does not answer.", "schema": None, "model": None, "cache": None, "issuer": None}
    model = _fault_for(health.model, health.model_public_detail, request)
    parts = {"database": health.database, "schema": health.schema, "model": model, "cache": health.cache}
    parts["issuer"] = health.issuer
    if request.app.state.likewise.settings.reranker:
        parts["reranker"] = _fault_for(health.reranker, health.reranker_public_detail, request)
    return parts


def _fault_for(fault: str | None, public_detail: str | None, request: Request) -> str | None:
    """Return what is wrong with a model, as this caller may know it."""
    return detail_for(ModelUnavailable(fault, public_detail=public_detail), request.scope) if fault else None


async def refuse_strangers(request: Request) -> None:
    """Refuse callers without the token: the numbers are over all tenants, so that one could see what another does."""
    settings: Settings = request.app.state.likewise.settings
    if not settings.asks_who_calls:
        return
    if settings.metrics_token is None:
        raise NotFound("Metrics are closed: set LIKEWISE_METRICS_TOKEN, and send it as a bearer token.")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    matches = hmac.compare_digest(token.strip().encode(), settings.metrics_token.encode())
    if scheme.lower() != "bearer" or not matches:
        raise Unauthorized("Send the value of LIKEWISE_METRICS_TOKEN as `Authorization: Bearer`.")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals(401, 404)},
    openapi_extra={"security": [{"metrics": []}]},
)
@declares(Load.PROBE)
async def metrics(_: Anyone, __: Annotated[None, Depends(refuse_strangers)], request: Request) -> Response:
    """The metrics of this process and of the queue, in Prometheus's text format."""
    state = request.app.state
    if not hasattr(state, "queue"):
        state.queue = QueueReader(state.likewise.runtime.pool)
    page = exposition(now(state.likewise, await state.queue.read()))
    return Response(page, media_type=CONTENT_TYPE, headers={"cache-control": "no-store"})


@dataclass(frozen=True)
class Queue:
    """The queue of each model: for how long its oldest content has waited, in seconds, and about how many wait."""

    oldest: Mapping[str, float]
    waiting: int


class QueueReader:
    """Reads the queue from the database at most once in some seconds, and never for long."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._last: Queue | None = None
        self._again = 0.0
        self._asking = asyncio.Lock()

    async def read(self) -> Queue | None:
        """Return the queue as it was a moment ago; None if the database did not answer."""
        async with self._asking:
            if time.monotonic() >= self._again:
                self._last = await self._ask()
                self._again = time.monotonic() + KEPT_SECONDS
            return self._last

    async def _ask(self) -> Queue | None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return Queue(await waiting.models(self._pool), await waiting_estimate(self._pool))
        except (TimeoutError, LikewiseError):
            return None


def now(likewise: Likewise, queue: Queue | None) -> MetricsSnapshot:
    """Return the numbers that the parts of an open Likewise have now."""
    models = {one.name: one.state for one in likewise.embedder.states()}
    pool = likewise.runtime.pool
    numbers = pool.numbers
    return MetricsSnapshot(
        database_up=queue is not None,
        storage_fault=likewise.runtime.storage_fault is not None,
        oldest_waiting={} if queue is None else _of_allowed(queue.oldest, models),
        waiting=None if queue is None else queue.waiting,
        models=models | {one.name: one.state for one in likewise.runtime.reranking.states()},
        cache_bytes=likewise.embedder.cache_bytes,
        redis_up=likewise.embedder.cache_fault is None if likewise.settings.redis_url else None,
        pool_in_use=numbers.get("pool_size", 0) - numbers.get("pool_available", 0),
        pool_idle=numbers.get("pool_available", 0),
        pool_max=numbers.get("pool_max", 0),
        pool_waiting=numbers.get("requests_waiting", 0),
        pool_waits=numbers.get("requests_queued", 0),
        pool_wait_seconds=numbers.get("requests_wait_ms", 0) / 1000,
    )


def _of_allowed(oldest: Mapping[str, float], allowed: Mapping[str, str]) -> dict[str, float]:
    """Seconds by model, those that the settings do not allow together: the rows may name models of old.

    A model for which nothing waits has waited for 0 s.
    """
    found = dict.fromkeys(allowed, 0.0)
    for model, seconds in oldest.items():
        name = model if model in allowed else OTHER
        found[name] = max(found.get(name, 0.0), seconds)
    return found
