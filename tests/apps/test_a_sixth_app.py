"""An app is its folder and one row: with these it is served, admitted, documented, worked for and listed."""

import gzip
import json

import httpx2
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from likewise.apps.declaration import Load
from likewise.apps.registry import APPS, App
from likewise.cli import main
from likewise.errors import StartError
from likewise.library import Likewise
from likewise.server.app import create_app
from likewise.server.concurrency import RequestLimit
from tests.apps.postcards.service import PostcardsService
from tests.conftest import Opener
from tests.jobs import ended

BASE = "http://127.0.0.1"
POSTCARDS = App(
    name="postcards",
    package="tests.apps.postcards",
    kinds=("service:KIND",),
    routers=("routes:router",),
    service="service:PostcardsService",
    tasks={"postcards_count": "service:PostcardsService.count"},
    job_results={"postcards_count": "service:COUNT_RESULT"},
    commands={"postcards": "tests.apps.postcards.routes:commands"},
)


def calling(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE)


async def test_it_is_served_and_its_job_is_done(open_likewise: Opener) -> None:
    async with (
        open_likewise(apps=[POSTCARDS]) as lw,
        calling(create_app(lw, lw.settings, apps=[POSTCARDS])) as client,
    ):
        # When
        for number, place in (("1", "Rome"), ("2", "Oslo")):
            card = json.dumps({"id": number, "text": f"Greetings from {place}", "place": place}).encode()
            stored = await client.post(
                "/postcards",
                content=gzip.compress(card),
                headers={"content-type": "application/json", "content-encoding": "gzip"},
            )
            assert stored.status_code == 204, stored.text
        counted = await client.post("/postcards/count")
        # Then
        job = await ended(lw, await lw.tenant(), counted.json()["job_id"])
        assert (counted.status_code, job.result) == (202, {"postcards": 2})
        # And the general API finds them by the name that the app has for a field
        asked = {"query": "Greetings", "mode": "lexical", "filters": {"place": "Oslo"}}
        found = await client.post("/api/v1/collections/postcards:all/search", json=asked)
        assert [hit["id"] for hit in found.json()["hits"]] == ["2"]
        assert lw.postcards is lw.service(PostcardsService)


async def test_it_is_admitted_by_its_load(lw: Likewise) -> None:
    # Given
    app = create_app(lw, lw.settings, apps=[POSTCARDS])
    async with calling(app) as client:
        await client.get("/livez")
        limit = app.middleware_stack
        while not isinstance(limit, RequestLimit):
            limit = limit.app  # type: ignore[union-attr]
        # When nobody may write
        limit.limiters[Load.WRITE].allowed = 0
        # Then
        assert (await client.post("/postcards", json={})).json()["code"] == "overloaded"
        assert (await client.get("/jobs")).status_code == 200


async def test_it_is_documented(lw: Likewise) -> None:
    async with calling(create_app(lw, lw.settings, apps=[POSTCARDS])) as client:
        document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/postcards"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/PostcardIn"}
    assert "PostcardIn" in document["components"]["schemas"]
    assert {"401", "403", "415", "500"} <= set(operation["responses"])


def test_its_commands_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "APPS", (*APPS, POSTCARDS))
    shown = CliRunner().invoke(main.app, ["--help"])
    assert "postcards" in shown.output


@pytest.mark.parametrize("row", APPS, ids=lambda row: row.name)
def test_every_name_of_a_row_leads_somewhere(row: App) -> None:
    columns = (row.tasks, row.job_results, row.errors)
    names = [*row.kinds, *row.routers, *(name for column in columns for name in column.values())]
    assert all(row.load(name) is not None for name in names)
    with pytest.raises(StartError, match="routes:nothing"):
        row.load("routes:nothing")
