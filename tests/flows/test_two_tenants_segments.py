"""Two tenants with tokens on one server: their segments, searches and jobs are their own."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

import likewise
from likewise.auth.caller import Scope
from likewise.embedding.embedder import Embedder
from likewise.server.app import create_app
from likewise.server.endpoints import all_routes
from likewise.settings import load_settings
from likewise.testing import FakeProvider, ThrowawayPostgres
from likewise.testing.tokens import Signer, claims_of
from tests.flows.invariants import broken
from tests.flows.two_tenants import CANARIES, SETTINGS, Call, House, Sent, Teller, all_made, calls

SECRET = "a secret of this test, of 32 bytes or more"
# For each of the two ways to keep segments.
EXAMPLES, CALLS = 50, 50


def token(tenant: str, scope: str | None = None, *, secret: str = SECRET) -> str:
    """What a tenant shows."""
    return Signer.shared(secret).token(claims_of(tenant, scope=scope))


@pytest.fixture(scope="module", params=[True, False], ids=["texts and words kept", "texts sealed while they wait"])
async def house(
    request: pytest.FixtureRequest, postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    """The server: one that keeps words and texts, so that there is more to show, and one as it is by default."""
    async with postgres.database() as urls:
        settings = load_settings(
            data_dir=tmp_path_factory.mktemp("data"),
            database_url=urls.owner,
            database_serving_url=urls.serving,
            auth="dev",
            dev_jwt_secret=SECRET,
            segments_keep_text=request.param,
            segments_keep_terms=request.param,
        )
        embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
        async with likewise.open(settings, embedder=embedder) as lw:
            app = create_app(lw, settings)
            transport = httpx2.ASGITransport(app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://likewise.example") as client:
                paths = frozenset(route.path for route in all_routes(app.routes))
                readers = [token(canary, "read") for canary in CANARIES]
                keepers = [token(canary) for canary in CANARIES]
                # Each as the other, by a secret that anybody could think of.
                forged = [token(canary, secret="another secret, of 32 bytes or more") for canary in reversed(CANARIES)]
                yield House(client, paths, readers, keepers, forged)
        assert await broken(urls.owner) == {}


class SegmentsTeller(Teller):
    """Makes up requests of segments, and of their jobs."""

    def asset(self, canary: str) -> str:
        # Assets that both have, and assets that tell whose they are.
        return self.dice.choice(["shared", "shared", f"{canary}/asset {self.dice.randint(0, 3)}"])

    def segment(self) -> str:
        return self.dice.choice(["7", "chunk_0", f"{self.own} {self.dice.randint(0, 9)}"])

    def of_segment(self) -> dict[str, Any]:
        return {
            "segment_id": self.segment(),
            "text": self.text(self.own),
            "metadata": {"site": self.own, "n": self.dice.randint(0, 9), f"{self.own}_field": [self.own]},
        }

    def job(self) -> str:
        known = [job for jobs in self.house.jobs for job in jobs[-5:]]
        return self.dice.choice([*known, str(uuid.UUID(int=self.dice.getrandbits(128)))])

    def point(self) -> str:
        known = [point for points in self.house.points for point in points[-5:]]
        return self.dice.choice([*known, str(uuid.UUID(int=self.dice.getrandbits(128)))])

    def embed(self) -> Sent:
        body = {"asset_id": self.asset(self.own), **self.of_segment(), self.own: self.own}
        return Sent("POST", "/vectors/embed", Scope.WRITE, body, self.idempotency())

    def batch(self) -> Sent:
        segments: list[Any] = [self.of_segment() for _ in range(self.dice.randint(1, 4))]
        if self.dice.random() < 0.1:
            segments.append(self.somebody())
        body = {"asset_id": self.asset(self.own), "segments": segments}
        return Sent("POST", "/vectors/embed/batch", Scope.WRITE, body, self.idempotency())

    def document(self) -> Sent:
        text = " ".join(self.text(self.own) for _ in range(self.dice.choice([1, 10, 200])))
        return Sent("POST", "/vectors/documents", Scope.WRITE, {"asset_id": self.asset(self.own), "text": text})

    def question(self) -> dict[str, Any]:
        who = self.somebody()
        body: dict[str, Any] = {"query_text": self.text(who), "limit": self.dice.choice([1, 10, 100])}
        body["mode"] = self.dice.choice(["dense", "dense", "hybrid", "lexical"])
        if self.dice.random() < 0.4:
            body["filters"] = self.dice.choice(
                [{"site": who}, {"asset_id": {"$ne": self.asset(who)}}, {"segment_id": self.segment()},
                 {"site": {"$wrong": who}}, {"n": {"$gte": 3}}, who]
            )  # fmt: skip
        if self.dice.random() < 0.3:
            body["asset_id"] = self.asset(who)
        if self.dice.random() < 0.2:
            body["threshold"] = self.dice.choice([-1, 0.0, 0.5, who])
        if self.dice.random() < 0.2:
            body["group_by"] = "asset_id"
        return body

    def search(self) -> Sent:
        return Sent("POST", "/vectors/search", Scope.READ, self.question())

    def search_later(self) -> Sent:
        return Sent("POST", "/vectors/search/async", Scope.READ, self.question())

    def delete_point(self) -> Sent:
        return Sent("DELETE", f"/vectors/{self.point()}", Scope.WRITE)

    def delete_asset(self) -> Sent:
        return Sent("DELETE", f"/vectors/asset/{self.asset(self.somebody())}", Scope.WRITE)

    def look(self) -> Sent:
        return Sent("GET", f"/jobs/{self.job()}", Scope.READ)

    def jobs(self) -> Sent:
        query = self.dice.choice(["", "?limit=2", f"?cursor={self.cursor()}", f"?status={self.somebody()}"])
        return Sent("GET", f"/jobs{query}", Scope.READ)

    def cancel(self) -> Sent:
        return Sent("POST", f"/jobs/{self.job()}/cancel", Scope.WRITE)

    def retry(self) -> Sent:
        return Sent("POST", f"/jobs/{self.job()}/retry", Scope.WRITE)

    def listed(self) -> Sent:
        path = self.dice.choice(["", "/segments:minilm-l6-v2", "/segments:minilm-l6-v2/stats"])
        return Sent("GET", f"/api/v1/collections{path}", Scope.READ)

    def found(self) -> Sent:
        body = {"query": self.text(self.somebody())}
        return Sent("POST", "/api/v1/collections/segments:minilm-l6-v2/search", Scope.READ, body)

    def broken(self) -> Sent:
        body = self.dice.choice(["{" + self.somebody(), "[" * 50, f'"{self.somebody()}"', "", "\0"])
        path, scope = self.dice.choice([("/vectors/embed", Scope.WRITE), ("/vectors/search", Scope.READ)])
        return Sent("POST", path, scope, body)

    def lost(self) -> Sent:
        return Sent("GET", self.dice.choice([f"/vectors/{self.somebody()}/x/y", f"/jobs/{self.somebody()}"]), None)


OFTEN = ("embed", "search", "batch", "look")
WHAT = (*OFTEN, *OFTEN, *OFTEN, "document", "search_later", "delete_point", "delete_point", "delete_asset", "jobs",
        "jobs", "cancel", "retry", "listed", "found", "broken", "lost")  # fmt: skip


@hypothesis_settings(SETTINGS, max_examples=EXAMPLES)
@given(made_up=calls(WHAT, CALLS))
async def test_nothing_of_one_tenants_segments_is_shown_to_the_other(house: House, made_up: list[Call]) -> None:
    await all_made(house, SegmentsTeller, made_up)
    # In the end every kind of answer was among them: where nothing is found nothing is shown either
    if sum(house.statuses.values()) == EXAMPLES * CALLS:
        assert {200, 202, 204, 400, 401, 403, 404, 409, 422} <= set(house.statuses)
        assert house.statuses[200] > EXAMPLES * CALLS / 10, house.statuses
        assert house.foreign > EXAMPLES * CALLS / 50
