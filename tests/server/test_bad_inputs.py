"""Inputs that mean harm or are broken: each has its status, its shape, and leaves the server as it was."""

import json
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx2
import pytest

from likewise.apps.deps import cursor_for
from likewise.library import Likewise
from likewise.server.app import create_app
from likewise.settings import load_settings

URL = "/api/v1/collections"
RECORDS, SEARCH = f"{URL}/notes/records", f"{URL}/notes/search"
EMBED, BATCH, DOCUMENTS = "/vectors/embed", "/vectors/embed/batch", "/vectors/documents"
VECTORS = [EMBED, BATCH, DOCUMENTS, "/vectors/search", "/vectors/search/async"]
# A job and a point that nobody has.
JOB, POINT = f"/jobs/{UUID(int=1)}", f"/vectors/{UUID(int=1)}"
JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}
# What no answer may repeat, put wherever a value can be wrong.
SECRET = "xyzzy-secret"

PROBLEM = {"type", "title", "status", "detail", "instance", "code", "request_id", "retryable", "errors"}


def is_problem(answer: httpx2.Response, status: int, code: str | None = None) -> dict[str, Any]:
    problem = answer.json()
    assert answer.status_code == status, problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(problem) >= PROBLEM
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert all(set(fault) == {"pointer", "code", "message"} for fault in problem["errors"])
    assert SECRET not in answer.text
    if code is not None:
        assert problem["code"] == code
    return problem


def faults(answer: httpx2.Response) -> dict[str, str]:
    return {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]}


def nested(depth: int) -> Any:
    value: Any = SECRET
    for _ in range(depth):
        value = [value]
    return value


# Bodies that cannot be read


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'[{"id": "1", "te', id="truncated"),
        pytest.param(b"id=1&text=" + SECRET.encode(), id="not JSON"),
        pytest.param("[]".encode("utf-16"), id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf[]", id="byte order mark"),
        pytest.param(b'[{"id": "1", "text": "\xff"}]', id="invalid UTF-8"),
        pytest.param(b'[{"id": "1", "text": "\xed\xa0\x80"}]', id="raw surrogate"),
        pytest.param(b'[{"id": "1", "text": "x", "payload": {"n": NaN}}]', id="NaN"),
        pytest.param(b'[{"id": "1", "text": "x", "payload": {"n": -Infinity}}]', id="Infinity"),
        pytest.param(b'[{"id": "1", "text": "x", "payload": {"n": 1e999}}]', id="1e999"),
        pytest.param(b'[{"id": "1", "text": "x", "payload": {"n": ' + b"1" * 5_000 + b"}}]", id="5,000 digits"),
        pytest.param(b"[" * 60_000, id="60,000 brackets"),
        pytest.param(b'[{"id": "1", "text": "\x00"}]', id="raw NUL"),
    ],
)
@pytest.mark.parametrize("path", [URL, RECORDS, SEARCH, *VECTORS])
async def test_a_body_that_is_not_json_is_400(client: httpx2.AsyncClient, path: str, body: bytes) -> None:
    is_problem(await client.post(path, content=body, headers=JSON), 400, "malformed")


@pytest.mark.parametrize("path", [URL, RECORDS, SEARCH, *VECTORS])
async def test_a_document_of_depth_33_is_422(client: httpx2.AsyncClient, path: str) -> None:
    is_problem(await client.post(path, content=json.dumps(nested(33)), headers=JSON), 422)


@pytest.mark.parametrize("path", [URL, RECORDS, SEARCH, *VECTORS])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/json; charset=utf-16"}, 415),
        (JSON | {"content-encoding": "gzip"}, 415),
        (JSON | {"content-encoding": "br"}, 415),
        (JSON | {"content-encoding": "gzip, identity"}, 415),
        (JSON | {"content-encoding": "x-unknown"}, 415),
        (JSON | {"content-encoding": "identity"}, 422),
        ({"content-type": "Application/JSON; charset=UTF-8"}, 422),
        ({"content-type": "application/vnd.api+json"}, 422),
    ],
)
async def test_a_body_says_that_it_is_plain_json(
    client: httpx2.AsyncClient, path: str, headers: dict[str, str], status: int
) -> None:
    is_problem(await client.post(path, content=b'{"unknown": 1}', headers=headers), status)


@pytest.mark.parametrize("path", [URL, SEARCH, *VECTORS])
async def test_ndjson_is_for_records_only(client: httpx2.AsyncClient, path: str) -> None:
    is_problem(await client.post(path, content=b"{}", headers=LINES), 415)


@pytest.mark.parametrize("body", [b"null", b"1", b'"x"', b"true", b"[]"])
@pytest.mark.parametrize("path", [URL, SEARCH, *VECTORS])
async def test_a_body_is_an_object(client: httpx2.AsyncClient, path: str, body: bytes) -> None:
    is_problem(await client.post(path, content=body, headers=JSON), 422)


@pytest.mark.parametrize("body", [b"null", b"1", b'"x"', b"true", b"{}", b'{"records": null}', b'{"records": {}}'])
async def test_records_are_a_list(client: httpx2.AsyncClient, body: bytes) -> None:
    is_problem(await client.post(RECORDS, content=body, headers=JSON), 422)


@pytest.mark.parametrize("path", VECTORS)
async def test_a_document_of_depth_33_within_a_body_is_422(client: httpx2.AsyncClient, path: str) -> None:
    segment = {"segment_id": "1", "text": "x", "metadata": {"a": nested(33)}}
    body = {"asset_id": "a", "query_text": "x", "segments": [segment], "filters": {"a": nested(33)}} | segment
    is_problem(await client.post(path, content=json.dumps(body), headers=JSON), 422)


async def test_a_body_of_thousands_of_fields_has_one_fault(client: httpx2.AsyncClient) -> None:
    keys = json.dumps({f"{number:05}": 1 for number in range(5_000)})
    answer = await client.post(URL, content=keys, headers=JSON)
    is_problem(answer, 422)
    assert faults(answer) == {"": "too_many_fields"}


async def test_one_byte_over_the_limit_is_413(client: httpx2.AsyncClient) -> None:
    exact = b"[" + b" " * (64 * 2**10 - 2) + b"]"
    assert (await client.post(RECORDS, content=exact, headers=JSON)).status_code == 200
    is_problem(await client.post(RECORDS, content=exact + b" ", headers=JSON), 413, "too_large")


@pytest.mark.parametrize("path", [*VECTORS, f"{JOB}/cancel", f"{JOB}/retry"])
async def test_one_byte_over_the_limit_is_413_of_segments_and_jobs(client: httpx2.AsyncClient, path: str) -> None:
    exact = b"{" + b" " * (64 * 2**10 - 2) + b"}"
    keyed = JSON | {"idempotency-key": uuid4().hex}
    assert (await client.post(path, content=exact, headers=keyed)).status_code in (404, 422)
    is_problem(await client.post(path, content=exact + b" ", headers=keyed), 413, "too_large")


async def test_the_last_of_equal_keys_counts(client: httpx2.AsyncClient) -> None:
    body = b'[{"id": "twice", "id": "once", "text": "x"}]'
    assert (await client.post(RECORDS, content=body, headers=JSON)).status_code == 200
    assert (await client.get(f"{RECORDS}/once")).status_code == 200
    assert (await client.get(f"{RECORDS}/twice")).status_code == 404


# Addresses, methods, headers


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/api/v1/nothing", f"{URL}/", "/api/v2/collections", "/livez/"),
        *("/vectors", "/vectors/", "/vectors/nothing", "/jobs/", "/jobs/nothing", f"{JOB}/nothing", f"{JOB}/"),
    ],
)
async def test_an_unknown_path_is_404(client: httpx2.AsyncClient, path: str) -> None:
    is_problem(await client.get(path), 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_of_the_openai_family_has_its_shape(client: httpx2.AsyncClient, method: str) -> None:
    answer = await client.request(method, "/v1/nothing")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", URL, {"GET", "POST"}),
        ("DELETE", URL, {"GET", "POST"}),
        ("OPTIONS", URL, {"GET", "POST"}),
        ("POST", f"{URL}/notes", {"GET", "DELETE"}),
        ("GET", RECORDS, {"POST"}),
        ("POST", f"{RECORDS}/a", {"GET", "DELETE"}),
        ("GET", SEARCH, {"POST"}),
        ("POST", "/livez", {"GET", "HEAD"}),
        ("PATCH", f"{URL}/notes/stats", {"GET"}),
        ("BREW", f"{URL}/notes/stats", {"GET"}),
        *(("GET", path, {"POST"}) for path in VECTORS),
        ("PUT", EMBED, {"POST"}),
        ("OPTIONS", EMBED, {"POST"}),
        ("GET", POINT, {"DELETE"}),
        ("POST", "/vectors/asset/a/b", {"DELETE"}),
        ("POST", "/jobs", {"GET"}),
        ("DELETE", JOB, {"GET"}),
        ("GET", f"{JOB}/cancel", {"POST"}),
        ("DELETE", f"{JOB}/retry", {"POST"}),
    ],
)
async def test_a_wrong_method_is_405_and_says_which_are_right(
    client: httpx2.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = await client.request(method, path)
    is_problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "name",
    [
        "Notes",
        "no_tes",
        "-notes",
        "9notes",
        "n" * 64,
        "notes%00",
        "notes%0a",
        "..",
        "%2e%2e",
        "nötes",
        "a:b:c",
        ":x",
        "a%20b",
    ],
)
async def test_a_name_that_no_collection_has_is_4xx(client: httpx2.AsyncClient, name: str) -> None:
    answer = await client.get(f"{URL}/{name}/stats")
    assert answer.status_code in (400, 404)
    is_problem(answer, answer.status_code)


@pytest.mark.parametrize(
    "id", ["missing", "%00", "a%00b", "a%0d%0aset-cookie:x", "x" * 2_000, "..%2f..%2fetc", "%ff", "\u00e9"]
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_record_that_is_not_there_is_4xx(client: httpx2.AsyncClient, method: str, id: str) -> None:
    answer = await client.request(method, f"{RECORDS}/{id}")
    assert answer.status_code in (400, 404)
    is_problem(answer, answer.status_code)


async def test_a_path_or_header_of_64_kb_is_refused(client: httpx2.AsyncClient) -> None:
    for path in (RECORDS, "/jobs", "/vectors", "/vectors/asset"):
        is_problem(await client.get(f"{path}/{'x' * 64_000}"), 414)
    is_problem(await client.get(URL, params={"cursor": "x" * 64_000}), 414)
    is_problem(await client.get(URL, headers={"x-large": "x" * 64_000}), 431)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil",
        "",
        "[::2]",
    ],
)
async def test_a_foreign_host_is_refused(client: httpx2.AsyncClient, host: str) -> None:
    is_problem(await client.get(URL, headers={"host": host}), 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]", "[::1]:8080"])
async def test_a_host_of_this_machine_is_fine(client: httpx2.AsyncClient, host: str) -> None:
    assert (await client.get(URL, headers={"host": host})).status_code == 200


async def test_two_hosts_are_refused(client: httpx2.AsyncClient) -> None:
    is_problem(await client.get(URL, headers=[("host", "localhost"), ("host", "evil.example")]), 400)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[", "file://"]
)
async def test_a_page_of_another_site_may_not_write(client: httpx2.AsyncClient, origin: str) -> None:
    is_problem(await client.post(URL, json={"name": "csrf"}, headers={"origin": origin}), 403, "forbidden")
    for path in (f"{URL}/notes", POINT, "/vectors/asset/a"):
        is_problem(await client.delete(path, headers={"origin": origin}), 403, "forbidden")
    for path in (*VECTORS, f"{JOB}/cancel", f"{JOB}/retry"):
        is_problem(await client.post(path, json={}, headers={"origin": origin}), 403, "forbidden")


async def test_a_page_of_this_machine_may_write(client: httpx2.AsyncClient) -> None:
    headers = {"origin": "http://localhost:3000"}
    assert (await client.post(URL, json={"name": "same-site"}, headers=headers)).status_code == 201


@pytest.mark.parametrize("credentials", ["", "Bearer", "Bearer " + SECRET, "Basic ===", "\u00ff", "x" * 5_000])
async def test_without_authentication_credentials_are_ignored(client: httpx2.AsyncClient, credentials: str) -> None:
    assert (await client.get(URL, headers={"authorization": credentials.encode("latin-1")})).status_code == 200


@pytest.mark.parametrize("given", ["a", "A-1._z", "x" * 128])
async def test_a_harmless_request_id_is_echoed(client: httpx2.AsyncClient, given: str) -> None:
    assert (await client.get("/livez", headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "<script>", "a;b", "\u00e9", "a,b"])
async def test_another_request_id_is_replaced(client: httpx2.AsyncClient, given: str) -> None:
    answer = await client.get("/livez", headers={"x-request-id": given.encode("latin-1")})
    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32


# Fields


async def test_half_a_character_in_an_id_is_refused(client: httpx2.AsyncClient) -> None:
    for half in ("d800", "d801"):
        body = b'[{"id": "k\\u' + half.encode() + b'", "text": "x"}]'
        answer = await client.post(RECORDS, content=body, headers=JSON)
        is_problem(answer, 422)
        assert faults(answer) == {"/0/id": "lost_character"}
        assert "lost on the way" in answer.json()["detail"]


async def test_a_number_that_is_too_long_is_said_to_be(client: httpx2.AsyncClient) -> None:
    record = b'{"id": "1", "text": "x", "payload": {"n": ' + b"1" * 5_000 + b"}}"
    whole = await client.post(RECORDS, content=b"[" + record + b"]", headers=JSON)
    line = await client.post(RECORDS, content=record, headers=LINES)
    assert "number is too long" in is_problem(whole, 400, "malformed")["detail"]
    assert "number is too long" in line.json()["failed"][0]["message"]


@pytest.mark.parametrize("name", ["", "My Docs", "a" * 64, "9", "a_b"])
async def test_a_wrong_name_is_told_what_a_name_is(client: httpx2.AsyncClient, name: str) -> None:
    problem = is_problem(await client.post(URL, json={"name": name}), 422)
    assert "lower-case letters a to z, digits and hyphens" in problem["detail"]


@pytest.mark.parametrize(
    ("time", "words"),
    [
        ("2026-12-31T23:59:60Z", "not in the range"),
        ("2026-02-30T00:00:00Z", "not in the range"),
        ("0001-01-01T00:00:00+01:00", "not in the range"),
        ("yesterday", "RFC 3339"),
    ],
)
async def test_a_time_that_is_not_kept_is_told_why(client: httpx2.AsyncClient, time: str, words: str) -> None:
    stored = await client.post(RECORDS, json=[{"id": "1", "text": "x", "occurred_at": time}])
    filtered = await client.post(SEARCH, json={"query": "x", "filters": {"occurred_at": time}})
    for answer in (stored, filtered):
        assert words in is_problem(answer, 422)["detail"]


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "/name", "required"),
        ({"name": None}, "/name", "wrong_type"),
        ({"name": 1}, "/name", "wrong_type"),
        ({"name": ""}, "/name", "invalid_value"),
        ({"name": "Xyzzy-Secret"}, "/name", "invalid_value"),
        ({"name": "a" * 64}, "/name", "invalid_value"),
        ({"name": "a\n"}, "/name", "invalid_value"),
        ({"name": "segments:minilm-l6-v2"}, "/name", "invalid_value"),
        ({"name": "x", "model": ""}, "/model", "too_short"),
        ({"name": "x", "model": "x" * 300}, "/model", "too_long"),
        ({"name": "x", "model": SECRET}, "/model", "model_not_allowed"),
        ({"name": "x", "model": "../../etc/passwd"}, "/model", "model_not_allowed"),
        ({"name": "x", "model": "http://evil.example/"}, "/model", "model_not_allowed"),
        ({"name": "x", "policy": []}, "/policy", "wrong_type"),
        ({"name": "x", "policy": {"keep_terms": 0}}, "/policy/keep_terms", "wrong_type"),
        ({"name": "x", "policy": {"on_long": "split"}}, "/policy/on_long", "not_supported"),
        ({"name": "x", "policy": {"on_long": SECRET}}, "/policy/on_long", "invalid_value"),
        ({"name": "x", "policy": {"retention_days": 3}}, "/policy/retention_days", "not_supported"),
        ({"name": "x", "policy": {"indexed": ["a", "a"]}}, "/policy/indexed", "invalid_value"),
        ({"name": "x", "policy": {"indexed": ["x') OR '1'='1"]}}, "/policy/indexed", "invalid_value"),
        ({"name": "x", "policy": {"indexed": [1]}}, "/policy/indexed/0", "wrong_type"),
        ({"name": "x", "tenant": 7}, "/tenant", "unknown_field"),
        ({"name": "x", "a~b/c": 1}, "/a~0b~1c", "unknown_field"),
    ],
)
async def test_a_collection_with_a_bad_field_is_not_made(
    client: httpx2.AsyncClient, body: Any, pointer: str, code: str
) -> None:
    answer = await client.post(URL, json=body)
    is_problem(answer, 422)
    assert faults(answer)[pointer] == code
    assert (await client.get(f"{URL}/x")).status_code == 404


RECORD = {"id": "bad", "text": "text"}


@pytest.mark.parametrize(
    ("fields", "pointer", "code"),
    [
        ({"id": ""}, "/0/id", "too_short"),
        ({"id": "x" * 513}, "/0/id", "too_long"),
        ({"id": "x" * 10_000}, "/0/id", "too_long"),
        ({"id": "a\0b"}, "/0/id", "control_character"),
        ({"id": "k\ufffd"}, "/0/id", "lost_character"),
        ({"parent": "k\ufffd"}, "/0/parent", "lost_character"),
        ({"status": "k\ufffd"}, "/0/status", "lost_character"),
        ({"id": "a\nb"}, "/0/id", "control_character"),
        ({"id": "a\x85b"}, "/0/id", "control_character"),
        ({"id": 7}, "/0/id", "wrong_type"),
        ({"id": None}, "/0/id", "wrong_type"),
        ({"text": ""}, "/0/text", "blank"),
        ({"text": " \n\t\u2003"}, "/0/text", "blank"),
        ({"text": 7}, "/0/text", "wrong_type"),
        ({"text": None}, "/0/text", "wrong_type"),
        ({"text": [SECRET]}, "/0/text", "wrong_type"),
        ({"payload": None}, "/0/payload", "wrong_type"),
        ({"payload": [SECRET]}, "/0/payload", "wrong_type"),
        ({"payload": nested(16)}, "/0/payload", "wrong_type"),
        ({"payload": {"x": nested(16)}}, "/0/payload", "too_deep"),
        # One would take the other's place, once what cannot be kept is U+FFFD.
        ({"payload": {"x": {"k\0": 1, "k\ufffd": 2}}}, "/0/payload", "invalid_value"),
        ({"parent": ""}, "/0/parent", "too_short"),
        ({"parent": "x" * 513}, "/0/parent", "too_long"),
        ({"status": 1}, "/0/status", "wrong_type"),
        ({"status": "a\0"}, "/0/status", "control_character"),
        ({"occurred_at": "2026-01-01T00:00:00"}, "/0/occurred_at", "invalid_time"),
        ({"occurred_at": "2026-01-01"}, "/0/occurred_at", "invalid_time"),
        ({"occurred_at": "2026-02-30T00:00:00Z"}, "/0/occurred_at", "invalid_time"),
        ({"occurred_at": "0001-01-01T00:00:00+14:00"}, "/0/occurred_at", "invalid_time"),
        ({"occurred_at": SECRET}, "/0/occurred_at", "invalid_time"),
        ({"occurred_at": 1_700_000_000}, "/0/occurred_at", "invalid_time"),
        ({"vector": [1.0]}, "/0/vector", "unknown_field"),
        ({"text\0": SECRET}, "/0/text\0", "unknown_field"),
    ],
)
async def test_a_record_with_a_bad_field_is_not_stored(
    client: httpx2.AsyncClient, fields: dict[str, Any], pointer: str, code: str
) -> None:
    # When
    array = await client.post(RECORDS, json=[RECORD | fields])
    lines = await client.post(RECORDS, content=json.dumps(RECORD | fields), headers=LINES)
    # Then
    is_problem(array, 422)
    assert faults(array)[pointer] == code
    assert lines.status_code == 200
    assert {fault["pointer"]: fault["code"] for fault in lines.json()["failed"]}[pointer] == code
    assert lines.json()["created"] == 0
    assert SECRET not in lines.text


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "x" * 512},
        {"id": "with/slash ?#%"},
        {"id": "\U0001f600"},
        {"id": "'; DROP TABLE records; --"},
        {"text": "\0"},
        {"text": "a\0b"},
        {"payload": {"x": nested(15)}},
        {"payload": {"": 1, "__proto__": {}, "a\0b": "\0", "$.a": 2**70, "1e308": 1e308}},
        {"occurred_at": None, "parent": None, "status": None},
        {"occurred_at": "2026-01-01t00:00:00.123456789z"},
        {"occurred_at": "9999-12-31T23:59:59-00:00"},
    ],
)
async def test_odd_records_are_stored(client: httpx2.AsyncClient, fields: dict[str, Any]) -> None:
    answer = await client.post(RECORDS, json=[RECORD | fields])
    assert answer.status_code == 200, answer.text
    read = await client.get(f"{RECORDS}/{quote((RECORD | fields)['id'])}")
    assert read.status_code == 200, read.text
    assert read.json()["id"] == (RECORD | fields)["id"]


async def test_sizes_are_held(shared: Likewise) -> None:
    # Given a server with the usual limit for bodies
    large = create_app(shared, load_settings())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(large), base_url="http://127.0.0.1") as client:
        # Then
        assert (await client.post(RECORDS, json=[RECORD | {"text": "x " * 100_000}])).status_code == 200
        answer = await client.post(RECORDS, json=[RECORD | {"text": "x" * 200_001}])
        assert faults(answer) == {"/0/text": "too_long"}
        answer = await client.post(RECORDS, json=[RECORD | {"payload": {"x": "y" * 2**20}}])
        assert faults(answer) == {"/0/payload": "too_large"}
        answer = await client.post(RECORDS, json=[RECORD | {"payload": {"x": "y" * (2**16 - 8)}}])
        assert answer.status_code == 200
        answer = await client.post(RECORDS, json=[{"id": str(number), "text": "x"} for number in range(1_001)])
        assert faults(answer) == {"": "too_long"}
        answer = await client.post(RECORDS, content=b"[" * 10**6, headers=JSON)
        is_problem(answer, 400)
        keys = b"{" + b",".join(b'"%d":1' % number for number in range(10**6)) + b"}"
        is_problem(await client.post(SEARCH, content=keys, headers=JSON), 422)


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "", "one_of"),
        ({"query": "x", "like": "a"}, "", "one_of"),
        ({"query": ""}, "/query", "blank"),
        ({"query": "  "}, "/query", "blank"),
        ({"query": 7}, "/query", "wrong_type"),
        ({"query": [SECRET]}, "/query", "wrong_type"),
        ({"like": ""}, "/like", "too_short"),
        ({"like": "a\0"}, "/like", "control_character"),
        ({"query": "x", "limit": 0}, "/limit", "out_of_range"),
        ({"query": "x", "limit": -1}, "/limit", "out_of_range"),
        ({"query": "x", "limit": 101}, "/limit", "out_of_range"),
        ({"query": "x", "limit": 10**9}, "/limit", "out_of_range"),
        ({"query": "x", "limit": 1e9}, "/limit", "out_of_range"),
        ({"query": "x", "limit": 5.5}, "/limit", "wrong_type"),
        ({"query": "x", "limit": "5"}, "/limit", "wrong_type"),
        ({"query": "x", "limit": True}, "/limit", "wrong_type"),
        ({"query": "x", "limit": None}, "/limit", "wrong_type"),
        ({"query": "x", "threshold": 2}, "/threshold", "out_of_range"),
        ({"query": "x", "threshold": -2}, "/threshold", "out_of_range"),
        ({"query": "x", "threshold": "0.5"}, "/threshold", "wrong_type"),
        ({"query": "x", "threshold": True}, "/threshold", "wrong_type"),
        ({"query": "x", "mode": SECRET}, "/mode", "invalid_value"),
        ({"query": "x", "mode": None}, "/mode", "invalid_value"),
        ({"query": "x", "filters": []}, "/filters", "wrong_type"),
        ({"query": "x", "filters": SECRET}, "/filters", "wrong_type"),
        ({"query": "x", "cursor": "x"}, "/cursor", "invalid_cursor"),
        ({"query": "x", "group_by": "a b"}, "/group_by", "invalid_key"),
        ({"query": "x", "rerank": "yes"}, "/rerank", "wrong_type"),
        ({"query": "x", "rerank": 50}, "/rerank", "wrong_type"),
        ({"query": "x", "explain": "yes"}, "/explain", "wrong_type"),
        ({"query": "x", "top_k": 3}, "/top_k", "unknown_field"),
    ],
)
async def test_a_search_with_a_bad_field_is_422(client: httpx2.AsyncClient, body: Any, pointer: str, code: str) -> None:
    answer = await client.post(SEARCH, json=body)
    is_problem(answer, 422)
    assert faults(answer) == {pointer: code}


async def test_a_whole_number_may_be_written_with_a_point(client: httpx2.AsyncClient) -> None:
    # In JSON Schema 5.0 is an integer, and some programs write no others.
    answer = await client.post(SEARCH, content=b'{"query": "pump", "limit": 5.0}', headers=JSON)
    assert answer.status_code == 200


async def test_a_search_refuses_nan(client: httpx2.AsyncClient) -> None:
    is_problem(await client.post(SEARCH, content=b'{"query": "x", "threshold": NaN}', headers=JSON), 400)


@pytest.mark.parametrize(
    "filters",
    [
        {"x') OR '1'='1": 1},
        {"$.a": 1},
        {"": 1},
        {"a b": 1},
        {"n": {"$regex": SECRET}},
        {"n": {}},
        {"$or": []},
        {"$nor": [{}]},
        {"n": {"$in": list(range(1_001))}},
        {"$or": [{"n": number} for number in range(101)]},
        {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"n": 1}}}}}}}}}},
        {"occurred_at": SECRET},
        {"n": {"$exists": 1}},
        {"n": [1]},
    ],
)
async def test_a_bad_filter_is_422(client: httpx2.AsyncClient, filters: Any) -> None:
    answer = await client.post(SEARCH, json={"query": "x", "filters": filters})
    is_problem(answer, 422)
    assert all(pointer.startswith("/filters") for pointer in faults(answer))


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"__tenant": 7},
        {"n": "text"},
        {"n": {"$gt": "\0"}},
        {"n": None},
        {"status": 7},
        {"id": {"$contains": "%"}},
        {"created_at": 7},
        {"n": {"$gt": 10**40}},
        {"n": 1e308},
        {"payload.n": True},
        {"n.m.o": {"$exists": False}},
    ],
)
async def test_an_odd_filter_is_no_fault_of_the_server(client: httpx2.AsyncClient, filters: Any) -> None:
    for mode in ("hybrid", "dense", "lexical"):
        answer = await client.post(SEARCH, json={"query": "pump", "filters": filters, "mode": mode})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "AND NOT",
        "col:x",
        "*",
        "'; DROP TABLE records; --",
        "\0",
        "a\0b",
        "word " * 10_000,
        "_" * 50_000,
        "e" + "\u0301" * 20_000,
        "\U0001f600",
        "%s %(x)s {} {0}",
        "\\",
    ],
)
async def test_an_odd_query_is_no_fault_of_the_server(client: httpx2.AsyncClient, query: str) -> None:
    for mode in ("hybrid", "dense", "lexical"):
        answer = await client.post(SEARCH, json={"query": query, "mode": mode})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("position", ["", "no\0tes", "Notes", "notes\n", "x" * 300, "ünder"])
async def test_a_cursor_to_where_nothing_can_be_is_422(
    client: httpx2.AsyncClient, shared: Likewise, position: str
) -> None:
    cursor = cursor_for("collections", await shared.tenant(), position)
    problem = is_problem(await client.get(URL, params={"cursor": cursor}), 422)
    assert [fault["code"] for fault in problem["errors"]] == ["invalid_cursor"]


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "\u00e9", "x" * 513, "bm90ZXM", "../..", "AAAAAAAAAAAbm90ZXM="])
async def test_a_forged_cursor_is_422(client: httpx2.AsyncClient, cursor: str) -> None:
    answer = await client.get(URL, params={"cursor": cursor})
    is_problem(answer, 422)
    assert list(faults(answer)) == ["/cursor"]


async def test_a_cursor_of_ours_that_was_changed_is_422(client: httpx2.AsyncClient) -> None:
    # Given
    for name in ("cursor-a", "cursor-b"):
        await client.post(URL, json={"name": name})
    cursor = (await client.get(URL, params={"limit": 1})).json()["cursor"]
    # Then
    for changed in (cursor[:-1], cursor + "A", cursor + "=", cursor.swapcase()):
        is_problem(await client.get(URL, params={"cursor": changed}), 422)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=1e9", "limit=", "limt=5", "limit=true"]
)
async def test_a_bad_page_is_422(client: httpx2.AsyncClient, query: str) -> None:
    is_problem(await client.get(f"{URL}?{query}"), 422)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_collection_that_is_not_there_is_404(client: httpx2.AsyncClient, method: str) -> None:
    is_problem(await client.request(method, f"{URL}/missing"), 404, "collection_not_found")


async def test_work_in_a_collection_that_is_not_there_is_404(client: httpx2.AsyncClient) -> None:
    for path, body in (("records", [RECORD]), ("records", []), ("search", {"query": "x"}), ("search", {"like": "a"})):
        is_problem(await client.post(f"{URL}/missing/{path}", json=body), 404)
    is_problem(await client.post(f"{URL}/missing/records", content=b"", headers=LINES), 404)
    is_problem(await client.get(f"{URL}/missing/stats"), 404)


async def test_like_a_record_that_is_not_there_is_404(client: httpx2.AsyncClient) -> None:
    is_problem(await client.post(SEARCH, json={"like": "missing"}), 404)


async def test_a_fault_of_our_own_says_nothing(client: httpx2.AsyncClient, shared: Any, monkeypatch: Any) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(shared.collections, "stats", broken)
    problem = is_problem(await client.get(f"{URL}/notes/stats"), 500, "internal")
    assert "RuntimeError" not in json.dumps(problem)
