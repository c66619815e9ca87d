"""JWTs through the door: forged ones have one answer, good ones open it, and the issuer is asked seldom."""

import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, get_args

import httpx2
import pytest

import likewise
from likewise.auth.caller import Scope
from likewise.auth.jwt import Reason
from likewise.db import tenants
from likewise.db.pool import Pool
from likewise.embedding.embedder import Embedder
from likewise.library import Likewise
from likewise.observe import logs
from likewise.observe.metrics import TOKEN_FAULTS, TOKENS_REFUSED
from likewise.settings import Settings, load_settings
from likewise.testing import FakeIssuer, FakeProvider, ScriptedReply, ThrowawayPostgres
from likewise.testing.tokens import AUDIENCE, ISSUER, claims_of
from tests.auth import forged
from tests.auth.forged import SECRET, Forger, Forgery, headed, now
from tests.auth.keys import make_key
from tests.patience import until
from tests.server.conftest import calling

URL = "/api/v1/collections"

Serving = Callable[..., AbstractAsyncContextManager[tuple[Likewise, httpx2.AsyncClient]]]


@dataclass
class Door:
    """A server with one way of asking who calls."""

    client: httpx2.AsyncClient
    lw: Likewise
    forger: Forger

    async def get(self, token: str, path: str = URL, **headers: str) -> httpx2.Response:
        return await self.client.get(path, headers={"authorization": f"Bearer {token}", **headers})


@pytest.fixture(scope="module")
async def forger() -> AsyncIterator[Forger]:
    async with FakeIssuer().running() as issuer:
        yield Forger(issuer)


@pytest.fixture(scope="module")
async def serving(
    forger: Forger, postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Serving]:
    """Opens servers on one database; their settings are those of an issuer unless they say otherwise."""
    async with postgres.database() as urls:
        folder = tmp_path_factory.mktemp("data")

        @asynccontextmanager
        async def serve(**chosen: Any) -> AsyncIterator[tuple[Likewise, httpx2.AsyncClient]]:
            settings = settings_of(forger.issuer, **chosen).model_copy(
                update={"data_dir": folder, "database_url": urls.owner, "database_serving_url": urls.serving}
            )
            embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
            async with likewise.open(settings, worker=False, embedder=embedder) as lw, calling(lw) as client:
                yield lw, client

        yield serve


def settings_of(issuer: FakeIssuer, **chosen: Any) -> Settings:
    usual = {"auth": "jwks", "jwks_url": issuer.url, "jwt_audience": AUDIENCE, "jwt_issuer": ISSUER}
    return load_settings(**{**usual, **chosen})


@pytest.fixture(scope="module")
async def jwks(serving: Serving, forger: Forger) -> AsyncIterator[Door]:
    """One that takes the tokens of an issuer, and API keys."""
    async with serving(auth="jwks,keys") as (lw, client):
        yield Door(client, lw, forger)


@pytest.fixture(scope="module")
async def dev(serving: Serving, forger: Forger) -> AsyncIterator[Door]:
    """One that takes tokens of a secret."""
    async with serving(auth="dev", dev_jwt_secret=SECRET) as (lw, client):
        yield Door(client, lw, forger)


def told(answer: httpx2.Response) -> dict[str, Any]:
    """The answer without what differs from request to request."""
    return {name: value for name, value in answer.json().items() if name not in ("request_id", "instance")}


def refused() -> Counter[str]:
    """How many tokens were refused so far, by reason."""
    return Counter({reason: int(TOKENS_REFUSED.labels(reason)._value.get()) for reason in TOKEN_FAULTS})


FORGED = [
    pytest.param(way, reason, forgery, id=name)
    for way, table in (
        ("jwks", forged.OF_AN_ISSUER),
        ("jwks", forged.of_either(lambda forger: forger.rsa)),
        ("dev", forged.OF_DEVELOPMENT),
        ("dev", forged.of_either(lambda forger: forger.dev)),
    )
    for name, (reason, forgery) in table.items()
]


@pytest.mark.parametrize(("way", "reason", "forgery"), FORGED)
async def test_a_forged_token_has_the_answer_of_no_token(
    jwks: Door, dev: Door, way: str, reason: Reason | None, forgery: Forgery
) -> None:
    # Given
    door = jwks if way == "jwks" else dev
    assert (await door.get(forged.good(door.forger.rsa if way == "jwks" else door.forger.dev))).status_code == 200
    door.forger.issuer.asked.clear()
    before = refused()
    # When
    forbidden, nothing = await door.get(forgery(door.forger)), await door.client.get(URL)
    # Then it is refused for what is wrong with it, and nobody was asked at an address that it names
    assert refused() - before == ({} if reason is None else {reason: 1})
    assert {asked.path for asked in door.forger.issuer.asked} <= {FakeIssuer.path}
    assert forbidden.status_code == nothing.status_code == 401
    assert told(forbidden) == told(nothing)
    assert forbidden.headers["www-authenticate"] == nothing.headers["www-authenticate"] == "Bearer"


GOOD: dict[str, Forgery] = {
    "RS256": lambda f: headed(f.rsa),
    "ES256": lambda f: headed(f.ec),
    "without a name, the only key of its algorithm": lambda f: headed(f.ec, kid=None),
    "typ at+jwt": lambda f: headed(f.rsa, typ="at+jwt"),
    "typ application/at+JWT": lambda f: headed(f.rsa, typ="application/at+JWT"),
    "typ absent": lambda f: headed(f.rsa, typ=None),
    "members that nobody knows": lambda f: headed(f.rsa, x5t="abc", cat="cl_123", jku="https://evil.example/keys"),
    "one of several in aud": lambda f: forged.good(f.rsa, aud=["other", AUDIENCE]),
    "exp with a fraction": lambda f: forged.good(f.rsa, exp=now(600) + 0.5),
    "exp a moment ago": lambda f: forged.good(f.rsa, exp=now(-10)),
    "nbf in a moment": lambda f: forged.good(f.rsa, nbf=now(10), iat=now(10)),
    "iat absent": lambda f: forged.good(f.rsa, iat=None),
    "claims 32 deep": lambda f: forged.good(f.rsa, deep=forged._nested(31)),
    "claims that are large": lambda f: forged.good(f.rsa, roles=["role"] * 1_000),
    "a tenant of 512 letters": lambda f: f.rsa.token(claims_of("ü" * 512)),
    "a tenant with spaces and signs": lambda f: f.rsa.token(claims_of(" Acme & Söhne, 'GmbH' ")),
}


@pytest.mark.parametrize("token", GOOD.values(), ids=GOOD)
async def test_a_good_token_is_taken(jwks: Door, token: Forgery) -> None:
    assert (await jwks.get(token(jwks.forger))).status_code == 200


async def test_a_token_for_development_may_lack_an_end_and_needs_no_audience(dev: Door) -> None:
    assert (await dev.get(dev.forger.dev.token({"org_id": "acme"}))).status_code == 200
    assert (await dev.get(dev.forger.dev.token({"org_id": "acme", "aud": "x", "iss": 1}))).status_code == 200


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, "read write"),
        ({"scope": "openid profile email"}, "read write"),
        ({"scope": ""}, "read write"),
        ({"scp": "access_as_user", "scopes": []}, "read write"),
        ({"scope": "read"}, "read"),
        ({"scope": "openid write"}, "write"),
        ({"scope": "read write admin"}, "read write admin"),
        ({"scopes": ["admin"]}, "admin"),
        ({"scp": ["read", "offline_access"], "scope": "write"}, "read write"),
        ({"scope": "READ administrator read:all Admin"}, "read write"),
        ({"roles": ["admin"], "permissions": ["admin"]}, "read write"),
    ],
)
async def test_what_a_token_allows(jwks: Door, claims: dict[str, Any], scopes: str) -> None:
    token = forged.good(jwks.forger.rsa, **claims)
    asked = {
        Scope.READ: await jwks.get(token),
        Scope.WRITE: await jwks.client.post("/embed/metrics/reset", headers={"authorization": f"Bearer {token}"}),
        Scope.ADMIN: await jwks.client.delete(f"{URL}/none", headers={"authorization": f"Bearer {token}"}),
    }
    assert {scope for scope, answer in asked.items() if answer.status_code != 403} == set(scopes.split())
    assert all(answer.json()["code"] == "insufficient_scope" for answer in asked.values() if answer.status_code == 403)


async def test_what_a_token_without_scopes_allows_is_set(serving: Serving, forger: Forger) -> None:
    async with serving(jwt_default_scopes="none") as (lw, client):
        door = Door(client, lw, forger)
        assert (await door.get(forged.good(forger.rsa, scope="openid"))).status_code == 403
        assert (await door.get(forged.good(forger.rsa, scope="openid read"))).status_code == 200


@pytest.mark.parametrize(
    ("claim", "claims", "status"),
    [
        ("app_metadata.org_id", {"app_metadata": {"org_id": "acme"}}, 200),
        ("https://likewise.example/org", {"https://likewise.example/org": "acme"}, 200),
        ("app_metadata.org_id", {"app_metadata": {"org_id": ""}}, 401),
        ("app_metadata.org_id", {"app_metadata": "acme"}, 401),
        ("app_metadata.org_id", {"app_metadata.org_id": 1, "app_metadata": {"org_id": "acme"}}, 401),
        ("app_metadata.org_id", {"org_id": "acme"}, 401),
    ],
)
async def test_the_claim_that_names_the_tenant_is_set(
    serving: Serving, forger: Forger, claim: str, claims: dict[str, Any], status: int
) -> None:
    async with serving(jwt_tenant_claim=claim) as (lw, client):
        token = forger.rsa.token({**claims_of(None), **claims})
        assert (await Door(client, lw, forger).get(token)).status_code == status


async def test_two_tenants_see_nothing_of_each_other(jwks: Door) -> None:
    # Given
    acme, other = (jwks.forger.rsa.token(claims_of(name, scope="read write admin")) for name in ("acme-1", "acme-2"))
    bearer = {"authorization": f"Bearer {acme}"}
    assert (await jwks.client.post(URL, headers=bearer, json={"name": "mine"})).status_code == 201
    # When, then
    assert [one["name"] for one in (await jwks.get(acme)).json()["collections"]] == ["mine"]
    assert (await jwks.get(other)).json()["collections"] == []
    for path in (f"{URL}/mine", f"{URL}/mine/stats"):
        assert (await jwks.get(other, path)).status_code == 404
    assert (await jwks.client.delete(f"{URL}/mine", headers={"authorization": f"Bearer {other}"})).status_code == 404


async def test_a_key_and_a_token_each_open_the_door_of_the_same_tenant(jwks: Door) -> None:
    # Given
    token = jwks.forger.rsa.token(claims_of("both"))
    key = await make_key(jwks.lw.settings, "both", Scope.READ, Scope.WRITE)
    await jwks.client.post(URL, headers={"authorization": f"Bearer {token}"}, json={"name": "ours"})
    # When
    answers = [await jwks.get(key), await jwks.client.get(URL, headers={"x-api-key": key}), await jwks.get(token)]
    # Then
    assert [[one["name"] for one in answer.json()["collections"]] for answer in answers] == [["ours"]] * 3
    assert "API key" in (await jwks.client.get(URL)).json()["detail"]
    assert "issuer" in (await jwks.client.get(URL)).json()["detail"]


async def test_a_token_comes_in_one_header_only(jwks: Door) -> None:
    token = forged.good(jwks.forger.rsa)
    key = await make_key(jwks.lw.settings, "acme", Scope.READ)
    assert (await jwks.client.get(URL, headers={"x-api-key": token})).status_code == 401
    assert (await jwks.get(token, **{"x-api-key": token})).status_code == 401
    assert (await jwks.get(token, **{"x-api-key": key})).status_code == 401
    assert (await jwks.client.get(f"{URL}?access_token={token}")).status_code == 401


async def test_a_key_is_nothing_where_only_tokens_are(dev: Door) -> None:
    key = await make_key(dev.lw.settings, "acme", Scope.READ)
    for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
        answer = await dev.client.get(URL, headers=headers)
        assert (answer.status_code, "likewise token" in answer.json()["detail"]) == (401, True)


async def test_a_tenant_that_had_to_be_declared_is_refused_until_it_is(serving: Serving, forger: Forger) -> None:
    async with serving(tenants="declared") as (lw, client):
        door = Door(client, lw, forger)
        token = forger.rsa.token(claims_of("declared-later"))
        unknown = await door.get(token)
        owner = await Pool(lw.settings.database_url or "", max_size=1).open()
        assert await tenants.known(owner, "declared-later") is None
        assert await tenants.declare(owner, "declared-later")
        await owner.close()
        taken = await door.get(token)
    assert (unknown.status_code, unknown.json()["code"]) == (403, "tenant_not_declared")
    assert "likewise tenants add" in unknown.json()["detail"]
    assert "declared-later" not in unknown.text
    assert taken.status_code == 200


async def test_the_quota_is_the_tenants(serving: Serving, forger: Forger) -> None:
    async with serving(quota_tokens_per_minute=10) as (_, client):

        async def embed(tenant: str, subject: str) -> int:
            bearer = {"authorization": f"Bearer {forger.rsa.token(claims_of(tenant, sub=subject))}"}
            return (await client.post("/embed/text", headers=bearer, json={"text": "x" * 32})).status_code

        assert [await embed("spender", "a"), await embed("spender", "b"), await embed("saver", "a")] == [200, 429, 200]


async def test_no_token_reaches_a_log_line_or_a_metric(jwks: Door) -> None:
    # Given
    lines = io.StringIO()
    logs.configure("debug", lines)
    tenant = "zqtenant"
    tokens = [
        jwks.forger.rsa.token(claims_of(tenant)),
        jwks.forger.own.token(claims_of(tenant), kid="zqkid"),
        jwks.forger.rsa.token(claims_of(tenant, aud="zqaudience")),
    ]
    before = refused()
    # When
    statuses = [(await jwks.get(token)).status_code for token in tokens]
    # Then
    assert statuses == [200, 401, 401]
    written = lines.getvalue()
    assert [json.loads(line)["reason"] for line in written.splitlines() if '"reason"' in line] == ["key", "audience"]
    for token in tokens:
        assert not [part for part in token.split(".") if part in written]
    assert "zq" not in written
    assert refused() - before == {"key": 1, "audience": 1}
    assert set(get_args(Reason)) == set(TOKEN_FAULTS)


async def test_an_issuer_that_is_away_is_a_503_until_it_is_back(serving: Serving, forger: Forger) -> None:
    # Given
    forger.issuer.always = ScriptedReply(500, b"zqsecret")
    try:
        async with serving(auth="jwks,keys") as (lw, client):
            door, token = Door(client, lw, forger), forged.good(forger.rsa)
            key = await make_key(lw.settings, "acme", Scope.READ)
            # When
            away, by_key = await door.get(token), await door.get(key)
            health, strict = await client.get("/readyz"), await client.get("/readyz?strict=true")
            other = await door.get(forged.good(forger.rsa, aud="other"))
            forger.issuer.always = None
            await until(lambda: _opens(door, token))
            well = (await client.get("/readyz")).json()
    finally:
        forger.issuer.always = None
    # Then
    assert (away.status_code, away.json()["code"], away.json()["retryable"]) == (503, "issuer_unavailable", True)
    assert 1 <= int(away.headers["retry-after"]) <= 120
    assert by_key.status_code == 200
    assert (health.status_code, health.json()["status"], strict.status_code) == (200, "degraded", 503)
    assert health.json()["parts"]["issuer"] == "The issuer of tokens answers 500."
    assert other.status_code == 401
    assert well["parts"]["issuer"] is None


async def _opens(door: Door, token: str) -> bool:
    return (await door.get(token)).status_code == 200


async def test_the_document_says_that_a_token_goes_in_one_header(dev: Door, jwks: Door) -> None:
    tokens_only, both = [(await door.client.get("/openapi.json")).json() for door in (dev, jwks)]
    assert tokens_only["paths"][URL]["get"]["security"] == [{"key": ["read"]}]
    assert both["paths"][URL]["get"]["security"] == [{"key": ["read"]}, {"header": ["read"]}]
    assert "JWT" in both["components"]["securitySchemes"]["key"]["description"]
