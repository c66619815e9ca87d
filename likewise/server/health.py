"""Probes: liveness, readiness, and the page at the server's address."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from likewise.apps.answers import Answer, problem, refusals
from likewise.apps.declaration import Load, declares
from likewise.apps.deps import Anyone
from likewise.errors import ModelUnavailable, Unavailable
from likewise.observe.version import program_version
from likewise.server.problems import answer, detail_for, with_headers

# A database that hangs must not make the probe hang.
PROBE_SECONDS = 3.0

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
