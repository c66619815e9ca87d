"""Who may call what: decided on the route, by the headers, before a byte of the body is read."""

import io
import json
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request, Response

import likewise
from likewise.apps.body import PARSED
from likewise.apps.checking import RequestModel
from likewise.apps.declaration import Body as RouteBody
from likewise.apps.declaration import Load, declares
from likewise.apps.deps import Anyone, CanRead
from likewise.auth.api_keys import KeyRing, new_key, prefix_of
from likewise.auth.caller import Scope
from likewise.db import keys
from likewise.db.pool import Pool
from likewise.embedding.embedder import Embedder
from likewise.errors import SettingsError, StartError
from likewise.library import Likewise
from likewise.observe import logs
from likewise.server import app as application
from likewise.server.app import create_app
from likewise.server.endpoints import all_routes, scope_of
from likewise.settings import Settings, load_settings
from likewise.testing import FakeProvider
from tests.auth.keys import make_key

URL = "/api/v1/collections"
NOBODY = "00000000-0000-4000-8000-000000000000"
LOOPBACK = "http://127.0.0.1"

# Each route with a scope, and what a caller with it gets for a collection that is not there.
GUARDED = [
    ("GET", URL, Scope.READ, 200),
    ("POST", URL, Scope.WRITE, 415),
    ("GET", f"{URL}/none", Scope.READ, 404),
    ("DELETE", f"{URL}/none", Scope.ADMIN, 404),
    ("GET", f"{URL}/none/stats", Scope.READ, 404),
    ("POST", f"{URL}/none/records", Scope.WRITE, 415),
    ("GET", f"{URL}/none/records/a/b", Scope.READ, 404),
    ("DELETE", f"{URL}/none/records/a", Scope.WRITE, 404),
    ("POST", f"{URL}/none/search", Scope.READ, 415),
    ("GET", f"{URL}/none/clusters", Scope.READ, 404),
    ("POST", f"{URL}/none/clusters", Scope.READ, 404),
    ("GET", f"{URL}/none/clusters/1", Scope.READ, 404),
    ("POST", f"{URL}/none/reembed", Scope.ADMIN, 404),
    ("POST", f"{URL}/none/switch", Scope.ADMIN, 404),
    ("POST", f"{URL}/none/rollback", Scope.ADMIN, 404),
    ("POST", "/embed/text", Scope.READ, 415),
    ("POST", "/embed/batch", Scope.READ, 415),
    ("POST", "/embed/query", Scope.READ, 415),
    ("GET", "/embed/models", Scope.READ, 200),
    ("POST", "/v1/embeddings", Scope.READ, 415),
    ("POST", "/v1/rerank", Scope.READ, 415),
    ("GET", "/v1/models", Scope.READ, 200),
    ("GET", "/v1/models/a/b", Scope.READ, 404),
    ("GET", "/embed/metrics", Scope.READ, 200),
    ("POST", "/embed/metrics/reset", Scope.WRITE, 200),
    ("GET", "/api/v1/usage", Scope.READ, 200),
    ("POST", "/vectors/embed", Scope.WRITE, 415),
    ("POST", "/vectors/embed/batch", Scope.WRITE, 415),
    ("POST", "/vectors/documents", Scope.WRITE, 415),
    ("POST", "/vectors/search", Scope.READ, 415),
    ("POST", "/vectors/search/async", Scope.READ, 415),
    ("POST", "/vectors/mock", Scope.WRITE, 404),
    ("DELETE", f"/vectors/{NOBODY}", Scope.WRITE, 404),
    ("DELETE", "/vectors/asset/a/b", Scope.WRITE, 404),
    ("GET", "/jobs", Scope.READ, 200),
    ("GET", f"/jobs/{NOBODY}", Scope.READ, 404),
    ("POST", f"/jobs/{NOBODY}/cancel", Scope.WRITE, 404),
    ("POST", f"/jobs/{NOBODY}/retry", Scope.WRITE, 404),
]
OPEN = ["/embed/health", "/livez", "/readyz", "/healthz", "/", "/docs", "/openapi.json"]

SETTINGS = {"auth": "keys"}


@pytest.fixture(scope="module")
async def tokens(shared: Likewise, shared_settings: Settings) -> dict[str, str]:
    """A key of each kind: one scope each, none of them, and those of another tenant."""
    made = {scope: await make_key(shared_settings, "acme", scope) for scope in Scope}
    return {**made, "all": await make_key(shared_settings, "acme", *Scope)}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def problem_of(answer: httpx2.Response) -> dict[str, Any]:
    """The answer without what differs from request to request; OpenAI's shape has the same under other names."""
    if "error" in answer.json():
        return {**answer.json()["error"], "detail": answer.json()["error"]["message"]}
    return {name: value for name, value in answer.json().items() if name not in ("request_id", "instance")}


@pytest.mark.parametrize("path", OPEN)
async def test_what_is_open_needs_no_key(client: httpx2.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200


async def test_an_unknown_path_and_a_wrong_method_need_no_key(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/nowhere")).status_code == 404
    wrong = await client.put(URL)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, POST")


@pytest.mark.parametrize(("method", "path", "scope", "_"), GUARDED)
async def test_each_bad_credential_has_the_same_answer_on_every_route(
    client: httpx2.AsyncClient, tokens: dict[str, str], method: str, path: str, scope: Scope, _: int
) -> None:
    # Given
    good = tokens["all"]
    wrong = good[:-1] + ("a" if good[-1] != "a" else "b")
    bad: list[Any] = [
        {},
        {"authorization": ""},
        {"authorization": good},
        {"authorization": f"Basic {good}"},
        {"x-api-key": ""},
        bearer(wrong),
        bearer(new_key().token),
        bearer("x" * 20_000),
        bearer(good) | {"x-api-key": wrong},
        [("authorization", f"Bearer {good}"), ("authorization", f"Bearer {wrong}")],
    ]
    # When
    answers = [await client.request(method, path, headers=headers) for headers in bad]
    # Then
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert len({json.dumps(problem_of(answer)) for answer in answers}) == 1
    assert problem_of(answers[0])["code"] == "unauthorized"
    assert "likewise keys create" in problem_of(answers[0])["detail"]


@pytest.mark.parametrize(("method", "path", "scope", "status"), GUARDED)
async def test_a_route_takes_its_scope_and_no_other(
    client: httpx2.AsyncClient, tokens: dict[str, str], method: str, path: str, scope: Scope, status: int
) -> None:
    for held in Scope:
        answer = await client.request(method, path, headers=bearer(tokens[held]))
        if held == scope:
            assert answer.status_code == status
        else:
            assert answer.status_code == 403
            assert problem_of(answer)["code"] == "insufficient_scope"
            assert f"`{scope}`" in problem_of(answer)["detail"]
    assert (await client.request(method, path, headers={"x-api-key": tokens["all"]})).status_code == status


def test_the_table_above_has_every_route(app: FastAPI) -> None:
    guarded = {(method, scope_of(route)) for route in all_routes(app.routes) for method in route.methods}
    declared = [(method, scope_of(route)) for route in all_routes(app.routes) for method in route.methods]
    assert len([one for one in declared if one[1] is not None]) == len(GUARDED)
    assert {(method, scope) for method, _, scope, _ in GUARDED} | {("GET", None), ("HEAD", None)} == guarded


async def test_the_document_says_who_may_call(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    paths, schemes = document["paths"], document["components"]["securitySchemes"]
    assert paths[f"{URL}/{{name}}"]["delete"]["security"] == [{"key": ["admin"]}, {"header": ["admin"]}]
    # In the document a parameter that reaches to the end of the path has another name than in the route.
    one = paths[f"{URL}/{{name}}/records/{{record_id}}"]
    assert (one["get"]["security"][0], one["delete"]["security"][0]) == ({"key": ["read"]}, {"key": ["write"]})
    assert {"401", "403"} <= set(one["get"]["responses"]) & set(one["delete"]["responses"])
    assert paths["/metrics"]["get"]["security"] == [{"metrics": []}]
    assert "security" not in paths["/livez"]["get"]
    assert (schemes["key"]["scheme"], schemes["header"]["name"]) == ("bearer", "X-API-Key")


class Body(RequestModel):
    """Anything with a number."""

    number: int


def undeclared() -> APIRouter:
    router = APIRouter()

    @router.get("/forgotten")
    async def forgotten() -> Response:
        return Response()

    return router


def declared_too_late() -> APIRouter:
    router = APIRouter()

    @router.post("/forgotten")
    @declares(Load.OTHER, RouteBody(Body))
    async def forgotten(body: Annotated[Body, PARSED], tenant: CanRead) -> Response:
        return Response()

    return router


def plain() -> APIRouter:
    router = APIRouter()
    router.add_route("/forgotten", lambda request: Response())
    return router


def nested() -> APIRouter:
    router = APIRouter()
    router.include_router(undeclared())
    return router


@pytest.mark.parametrize("make", [undeclared, declared_too_late, plain, nested])
def test_a_route_without_a_scope_keeps_the_server_from_starting(
    shared: Likewise, shared_settings: Settings, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    # Given
    monkeypatch.setattr(application, "ROUTERS", (*application.ROUTERS, make()))
    # When, then
    with pytest.raises(StartError, match=r"/forgotten.*CanRead, CanWrite, CanAdminister or Anyone"):
        create_app(shared, shared_settings)


def test_a_route_that_does_not_say_how_it_loads_the_server_keeps_it_from_starting(
    shared: Likewise, shared_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    router = APIRouter()

    @router.get("/forgotten")
    async def forgotten(_: CanRead) -> Response:
        return Response()

    monkeypatch.setattr(application, "ROUTERS", (*application.ROUTERS, router))
    # When, then
    with pytest.raises(StartError, match=r"/forgotten.*how it loads the server.*@declares"):
        create_app(shared, shared_settings)


def test_a_route_that_says_it_is_open_is_served(
    shared: Likewise, shared_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter()

    @router.get("/open")
    @declares(Load.OTHER)
    async def opened(_: Anyone, request: Request) -> Response:
        return Response()

    monkeypatch.setattr(application, "ROUTERS", (*application.ROUTERS, router))
    create_app(shared, shared_settings)


@pytest.mark.parametrize("length", [b"10", b"65537", b"999999999999"])
@pytest.mark.parametrize("path", [URL, f"{URL}/notes/records", f"{URL}/notes/search"])
async def test_not_a_byte_of_the_body_is_read_before_the_caller_is_known(
    app: FastAPI, tokens: dict[str, str], path: str, length: bytes
) -> None:
    # Given
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    other = Scope.READ if path != f"{URL}/notes/search" else Scope.WRITE
    for headers, status in (([], 401), ([(b"authorization", f"Bearer {tokens[other]}".encode())], 403)):
        sent.clear()
        head = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", length)]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": head + headers,
            "client": None, "server": None, "state": {},
        }  # fmt: skip
        # When
        await app(scope, receive, send)
        # Then
        assert sent[0]["status"] == status


async def test_a_body_that_is_too_large_is_413_for_who_may_call(
    client: httpx2.AsyncClient, tokens: dict[str, str]
) -> None:
    large = {"content": b" " * (2**16 + 1), "headers": {"content-type": "application/json"}}
    assert (await client.post(f"{URL}/notes/records", **large)).status_code == 401
    large["headers"] |= bearer(tokens["all"])
    assert (await client.post(f"{URL}/notes/records", **large)).status_code == 413


async def test_a_revoked_key_is_refused_once_it_is_asked_for_again(
    client: httpx2.AsyncClient, shared: Likewise, shared_settings: Settings
) -> None:
    # Given
    token = await make_key(shared_settings, "acme", Scope.READ)
    assert (await client.get(URL, headers=bearer(token))).status_code == 200
    # When
    owner = await Pool(shared_settings.database_url or "", max_size=1).open()
    await keys.revoke(owner, prefix_of(token) or "")
    await owner.close()
    shared.runtime.authentication._keys = KeyRing(shared.runtime.pool)
    # Then
    assert (await client.get(URL, headers=bearer(token))).status_code == 401


async def test_a_key_appears_in_no_log_line(client: httpx2.AsyncClient, tokens: dict[str, str]) -> None:
    # Given
    lines = io.StringIO()
    logs.configure("debug", lines)
    good = tokens["all"]
    wrong = good[:-1] + ("a" if good[-1] != "a" else "b")
    # When
    for token in (good, wrong):
        for headers in (bearer(token), {"x-api-key": token}):
            await client.get(URL, headers=headers)
            await client.post(URL, headers=headers | {"content-type": "application/json"}, content=b"{")
    # Then
    assert lines.getvalue().count('"status"') == 8
    for token in (good, wrong):
        assert token not in lines.getvalue()
        assert token.rpartition("_")[2] not in lines.getvalue()


async def test_a_server_with_keys_is_called_by_any_name_and_from_any_page(
    client: httpx2.AsyncClient, tokens: dict[str, str]
) -> None:
    headers = bearer(tokens["all"]) | {"host": "likewise.example.org", "origin": "https://example.org"}
    assert (await client.get(URL, headers=headers)).status_code == 200


async def test_a_server_without_any_key_says_so(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    asking = settings.model_copy(update={"auth": ("keys",)})
    lines = io.StringIO()
    embedder = Embedder(asking, providers={asking.model: lambda spec: FakeProvider()})
    async with likewise.open(asking, embedder=embedder, worker=False) as lw:
        logs.configure("info", lines)
        # When there is none, and when there is one
        await lw.runtime.authentication.warn_if_nobody_can_call()
        warned = lines.getvalue()
        await make_key(asking, "acme", Scope.READ)
        await lw.runtime.authentication.warn_if_nobody_can_call()
    # Then
    assert "likewise keys create" in warned
    assert lines.getvalue().count("no_api_key") == 1


def test_none_is_combined_with_nothing_and_keys_may_listen_anywhere() -> None:
    load_settings(auth="keys", host="0.0.0.0").require_safe_address()
    assert not load_settings(auth="none").asks_who_calls
    for wrong in ("none,keys", "", ",", "basic"):
        with pytest.raises(SettingsError, match="LIKEWISE_AUTH"):
            load_settings(auth=wrong)
