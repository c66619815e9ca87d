"""Two tenants on one server: whatever one of them sends, nothing that it gets shows anything of the other."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

import likewise
from likewise.auth.api_keys import new_key
from likewise.auth.caller import Scope
from likewise.embedding.embedder import Embedder
from likewise.server.app import create_app
from likewise.server.endpoints import all_routes
from likewise.settings import load_settings
from likewise.testing import FakeProvider, ThrowawayPostgres
from tests.auth.keys import make_key
from tests.flows.two_tenants import CANARIES, SETTINGS, Call, House, Sent, Teller, all_made, calls
from tests.search.rerankers import BERT

URL = "/api/v1/collections"
EXAMPLES, CALLS = 100, 50


@pytest.fixture(scope="module")
async def house(postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """The server, and a collection of each tenant's to begin with."""
    async with postgres.database() as urls:
        folder = tmp_path_factory.mktemp("data")
        settings = load_settings(
            data_dir=folder,
            database_url=urls.owner,
            database_serving_url=urls.serving,
            auth="keys",
            reranker=str(BERT),
        )
        embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
        async with likewise.open(settings, embedder=embedder) as lw:
            app = create_app(lw, settings)
            transport = httpx2.ASGITransport(app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://likewise.example") as client:
                paths = frozenset(route.path for route in all_routes(app.routes))
                readers = [await make_key(settings, canary, Scope.READ) for canary in CANARIES]
                keepers = [await make_key(settings, canary, *Scope) for canary in CANARIES]
                yield House(client, paths, readers, keepers, [new_key().token for _ in CANARIES])


class CollectionsTeller(Teller):
    """Makes up requests of the general API."""

    def name(self, canary: str) -> str:
        # Names and ids that both have, and names that tell whose they are.
        return self.dice.choice(["shared", "shared", "shared", f"{canary}-one", f"{canary}-two"])

    def id(self, canary: str) -> str:
        return self.dice.choice(["7", f"{canary}/{self.dice.randint(0, 9)}"])

    def collection(self) -> str:
        return f"{URL}/{self.name(self.somebody())}"

    def record(self) -> dict[str, Any]:
        return {
            "id": self.id(self.own),
            "text": self.text(self.own),
            "payload": {"site": self.own, "n": self.dice.randint(0, 9), f"{self.own}_field": [self.own]},
            "status": self.own,
            "parent": f"{self.own} parent",
        }

    def filters(self) -> Any:
        value = self.somebody()
        return self.dice.choice(
            [{"site": value}, {"status": {"$ne": value}}, {"id": {"$in": [self.id(value), "7"]}}, {"n": {"$gte": 3}},
             {"parent": {"$contains": value}}, {"site": {"$exists": True}}, {"site": {"$wrong": value}}, value]
        )  # fmt: skip

    def list(self) -> Sent:
        cursor = f"&cursor={self.cursor()}" if self.dice.random() < 0.5 else ""
        return Sent("GET", f"{URL}?limit={self.dice.choice([0, 1, 2, 100])}{cursor}", Scope.READ)

    def create(self) -> Sent:
        body = {"name": self.name(self.own), "policy": {"indexed": ["site"]}}
        return Sent("POST", URL, Scope.WRITE, body, self.idempotency())

    def get(self) -> Sent:
        return Sent("GET", self.collection(), Scope.READ)

    def drop(self) -> Sent:
        return Sent("DELETE", self.collection(), Scope.ADMIN)

    def stats(self) -> Sent:
        return Sent("GET", f"{self.collection()}/stats", Scope.READ)

    def write(self) -> Sent:
        records: list[Any] = [self.record() for _ in range(self.dice.randint(1, 4))]
        if self.dice.random() < 0.2:
            records.append({"id": self.somebody(), "text": None, "payload": self.somebody()})
        return Sent("POST", f"{self.collection()}/records", Scope.WRITE, records, self.idempotency())

    def lines(self) -> Sent:
        lines = [json.dumps(self.record()), f"{{{self.somebody()}", json.dumps({"id": self.somebody(), "text": 1})]
        headers = {"content-type": "application/x-ndjson"} | self.idempotency()
        return Sent("POST", f"{self.collection()}/records", Scope.WRITE, "\n".join(lines), headers)

    def read(self) -> Sent:
        return Sent("GET", f"{self.collection()}/records/{self.id(self.somebody())}", Scope.READ)

    def delete(self) -> Sent:
        return Sent("DELETE", f"{self.collection()}/records/{self.id(self.somebody())}", Scope.WRITE)

    def search(self) -> Sent:
        who = self.somebody()
        body: dict[str, Any] = {"query": self.text(who)} if self.dice.random() < 0.7 else {"like": self.id(who)}
        body |= {"mode": self.dice.choice(["hybrid", "dense", "lexical"]), "limit": self.dice.choice([1, 10, 100])}
        if self.dice.random() < 0.5:
            body["filters"] = self.filters()
        if self.dice.random() < 0.2:
            body["threshold"] = self.dice.choice([-1, 0.0, 0.5, who])
        if self.dice.random() < 0.3:
            body |= {"group_by": "site", "explain": True}
        if self.dice.random() < 0.2:
            body["cursor"] = self.cursor()
        if self.dice.random() < 0.2:
            body["rerank"] = True
        return Sent("POST", f"{self.collection()}/search", Scope.READ, body)

    def rerank(self) -> Sent:
        own = [self.text(self.own) for _ in range(self.dice.randint(0, 3))]
        body = {"query": self.text(self.own), "documents": own, "return_documents": True}
        if self.dice.random() < 0.3:
            body["model"] = self.own
        return Sent("POST", "/v1/rerank", Scope.READ, body)

    def later(self) -> Sent:
        verb, scope = self.dice.choice([("clusters", Scope.READ), ("reembed", Scope.ADMIN), ("switch", Scope.ADMIN)])
        return Sent("POST", f"{self.collection()}/{verb}", scope, {"model": self.somebody()})

    def usage(self) -> Sent:
        if self.dice.random() < 0.2:
            return Sent("POST", "/embed/metrics/reset", Scope.WRITE, headers=self.idempotency())
        query = self.dice.choice(["", "?group_by=hour", f"?since={self.somebody()}", f"?unknown={self.somebody()}"])
        return Sent("GET", self.dice.choice(["/embed/metrics", f"/api/v1/usage{query}"]), Scope.READ)

    def broken(self) -> Sent:
        body = self.dice.choice(["{" + self.somebody(), "[" * 50, f'"{self.somebody()}"', "", "\0"])
        path, scope = self.dice.choice([(URL, Scope.WRITE), (f"{self.collection()}/search", Scope.READ)])
        return Sent("POST", path, scope, body)

    def lost(self) -> Sent:
        paths = [f"/{self.somebody()}", f"/api/v2/{self.somebody()}", f"{self.collection()}/nothing", "/v1/nothing"]
        return Sent("GET", self.dice.choice(paths), None)

    def refused_method(self) -> Sent:
        return Sent(self.dice.choice(["PUT", "PATCH", "OPTIONS"]), self.collection(), None)

    def open(self) -> Sent:
        paths = ["/livez", "/readyz", "/healthz?strict=true", "/", "/docs", "/openapi.json"]
        return Sent("GET", self.dice.choice(paths + (["/metrics"] if "/metrics" in self.house.paths else [])), None)


OFTEN = ("write", "search", "read", "list")
WHAT = (*OFTEN, *OFTEN, *OFTEN, "create", "create", "get", "drop", "stats", "lines", "delete", "later", "broken",
        "usage", "lost", "open", "refused_method", "rerank")  # fmt: skip


@hypothesis_settings(SETTINGS, max_examples=EXAMPLES)
@given(made_up=calls(WHAT, CALLS))
async def test_nothing_of_one_tenant_is_shown_to_the_other(house: House, made_up: list[Call]) -> None:
    # Given
    for key in house.keepers:
        await house.client.post(URL, json={"name": "shared"}, headers={"authorization": f"Bearer {key}"})
    # When both call, several at once, then nobody sees anything of the other
    await all_made(house, CollectionsTeller, made_up)
    # And in the end every kind of answer was among them: where nothing is found nothing is shown either
    if sum(house.statuses.values()) == EXAMPLES * CALLS:
        assert {200, 201, 204, 400, 401, 403, 404, 405, 409, 422} <= set(house.statuses)
        # How many depends on when the collections happen to be dropped.
        assert house.statuses[200] > EXAMPLES * CALLS / 10, house.statuses


# Each route that names something, with a foreign thing and one that is nowhere.
NAMING: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("DELETE", "", None),
    ("GET", "/stats", None),
    ("POST", "/records", [{"id": "1", "text": "x"}]),
    ("GET", "/records/7", None),
    ("DELETE", "/records/7", None),
    ("POST", "/search", {"query": "x"}),
    ("POST", "/search", {"like": "7"}),
    ("POST", "/search", {"query": "x", "rerank": True}),
    ("POST", "/search", {"like": "7", "rerank": True}),
    ("GET", "/clusters", None),
    ("POST", "/clusters", {}),
    ("GET", "/clusters/1", None),
    ("POST", "/reembed", {}),
    ("POST", "/switch", {}),
    ("POST", "/rollback", {}),
]
NOBODY = "00000000-0000-4000-8000-000000000000"
# And what each of these is named by.
OF_SEGMENTS = [
    ("GET", "/jobs/{}", "job_id"),
    ("POST", "/jobs/{}/cancel", "job_id"),
    ("POST", "/jobs/{}/retry", "job_id"),
    ("DELETE", "/vectors/{}", "point_id"),
    ("DELETE", "/vectors/asset/{}", "asset_id"),
]


async def test_what_belongs_to_another_answers_like_what_is_not_there(house: House) -> None:
    # Given a collection and records of the second tenant's, and one of the first's without them
    theirs, ours = ({"authorization": f"Bearer {house.keepers[tenant]}"} for tenant in (1, 0))
    await house.client.post(URL, json={"name": "theirs"}, headers=theirs)
    await house.client.post(f"{URL}/theirs/records", json=[{"id": "7", "text": "x"}], headers=theirs)
    await house.client.post(URL, json={"name": "both"}, headers=theirs)
    await house.client.post(f"{URL}/both/records", json=[{"id": "7", "text": "x"}], headers=theirs)
    await house.client.post(URL, json={"name": "both"}, headers=ours)
    pairs = [(method, f"{URL}/theirs{rest}", f"{URL}/nowhere{rest}", body, body) for method, rest, body in NAMING]
    pairs += [
        ("GET", f"{URL}/both/records/7", f"{URL}/both/records/8", None, None),
        ("DELETE", f"{URL}/both/records/7", f"{URL}/both/records/8", None, None),
        ("POST", f"{URL}/both/search", f"{URL}/both/search", {"like": "7"}, {"like": "8"}),
        ("POST", f"{URL}/both/search", f"{URL}/both/search", {"query": "x"}, {"query": "y"}),
    ]
    segment = {"asset_id": "theirs", "segment_id": "a", "text": "x"}
    told = (await house.client.post("/vectors/embed", json=segment, headers=theirs)).json()
    for method, path, named in OF_SEGMENTS:
        missing = "nowhere" if named == "asset_id" else NOBODY
        pairs.append((method, path.format(told[named]), path.format(missing), None, None))
    for method, foreign, missing, body, other_body in pairs:
        # When
        answers = [
            await house.client.request(method, path, json=sent, headers=ours)
            for path, sent in ((foreign, body), (missing, other_body))
        ]
        # Then
        first, second = (plain(answer) for answer in answers)
        assert first == second, (method, foreign)
    assert (await house.client.get(f"{URL}/theirs/records/7", headers=theirs)).status_code == 200
    assert (await house.client.delete(f"/vectors/{told['point_id']}", headers=theirs)).status_code == 204


def test_every_route_that_names_something_is_among_them(house: House) -> None:
    # Models are the settings' and not a tenant's.
    paths = [path for path in house.paths if "{" in path and not path.startswith("/v1/models/")]
    segments = {path for path in paths if path.startswith(("/jobs/", "/vectors/"))}
    assert {re.sub(r"\{.*?\}", "{}", path) for path in segments} == {path for _, path, _ in OF_SEGMENTS}
    names = {path.removeprefix(URL + "/{name}") for path in paths if path not in segments}
    tried = {re.sub(r"/(records|clusters)/.*", r"/\1/", rest) for _, rest, _ in NAMING}
    assert {re.sub(r"/\{.*", "/", name) for name in names} == tried


def plain(answer: httpx2.Response) -> Any:
    """An answer without what differs from request to request."""
    body = answer.json() if answer.content else {}
    kept = {name: value for name, value in body.items() if name not in ("request_id", "instance", "took_ms")}
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "content-length")}
    return answer.status_code, kept, headers
