"""The routes of postcards, and their commands."""

from typing import Annotated
from uuid import UUID

import typer
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from likewise.apps.answers import BODY_REFUSALS, Answer, refusals
from likewise.apps.body import PARSED
from likewise.apps.checking import RequestModel
from likewise.apps.declaration import Body, Load, declares
from likewise.apps.deps import CanRead, CanWrite, ServiceOf
from tests.apps.postcards.service import PostcardsService

router = APIRouter(prefix="/postcards", tags=["postcards"])
commands = typer.Typer(help="Postcards.", no_args_is_help=True)

Postcards = Annotated[PostcardsService, Depends(ServiceOf(PostcardsService))]


class PostcardIn(RequestModel):
    """A postcard."""

    id: str
    text: str
    place: str


class CountAnswer(BaseModel):
    """The job that counts."""

    job_id: UUID


@router.post("", status_code=204, responses=refusals(*BODY_REFUSALS))
@declares(Load.WRITE, Body(PostcardIn, encodings=("gzip",)))
async def store(tenant: CanWrite, service: Postcards, body: Annotated[PostcardIn, PARSED]) -> Response:
    """Store a postcard."""
    await service.store(tenant, body.id, body.text, body.place)
    return Response(status_code=204)


@router.post("/count", status_code=202, response_model=CountAnswer, responses=refusals())
@declares(Load.OTHER)
async def count(tenant: CanRead, service: Postcards) -> Answer:
    """Count the postcards."""
    return Answer({"job_id": await service.count_later(tenant)}, 202)


@commands.command()
def write() -> None:
    """Write a postcard."""
