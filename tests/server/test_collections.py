"""The routes of the general API, as a program calls them."""

import json
from typing import Any

import httpx2
import pytest

from likewise.db.failures import Contended, DatabaseFailure
from likewise.errors import DatabaseUnavailable, Invalid, LikewiseError
from likewise.library import Likewise

URL = "/api/v1/collections"


@pytest.fixture
async def fresh(client: httpx2.AsyncClient, request: pytest.FixtureRequest) -> str:
    """The URL of an empty collection of the test's own."""
    name = "t" + "".join(letter for letter in request.node.name.lower() if letter.isalnum())[-50:]
    assert (await client.post(URL, json={"name": name})).status_code == 201
    return f"{URL}/{name}"


def ndjson(*lines: Any) -> dict[str, Any]:
    body = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return {"content": body, "headers": {"content-type": "application/x-ndjson"}}


async def test_a_collection_is_made_shown_and_dropped(client: httpx2.AsyncClient) -> None:
    # When
    made = await client.post(URL, json={"name": "made", "policy": {"on_long": "refuse", "indexed": ["size"]}})
    shown = await client.get(f"{URL}/made")
    again = await client.post(URL, json={"name": "made"})
    dropped = await client.delete(f"{URL}/made")
    # Then
    assert made.status_code == 201
    assert made.json() == shown.json()
    assert made.json()["dimension"] == 384
    assert made.json()["policy"] == {"keep_text": True, "keep_terms": True, "on_long": "refuse", "indexed": ["size"]}
    assert made.json()["created_at"].endswith("Z")
    assert again.status_code == 409
    assert (dropped.status_code, dropped.content) == (204, b"")
    assert (await client.get(f"{URL}/made")).status_code == 404
    assert (await client.delete(f"{URL}/made")).status_code == 404


@pytest.mark.parametrize("name", ["My Docs", "", "9", "a" * 64, "notes\n", "segments:minilm-l6-v2", "n\0"])
async def test_no_program_makes_a_collection_that_has_no_address(shared: Likewise, name: str) -> None:
    with pytest.raises(Invalid, match="name"):
        await shared.collections.create(await shared.tenant(), name)


async def test_the_list_pages_by_a_cursor(client: httpx2.AsyncClient) -> None:
    # Given
    for number in range(5):
        await client.post(URL, json={"name": f"page-{number}"})
    everything = [one["name"] for one in (await client.get(URL, params={"limit": 100})).json()["collections"]]
    # When
    seen, cursor = [], None
    while True:
        page = (await client.get(URL, params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [one["name"] for one in page["collections"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    # Then
    assert seen == everything == sorted(everything)
    assert len(everything) >= 5


@pytest.mark.parametrize("wrapped", [False, True])
async def test_records_are_stored_read_and_deleted(client: httpx2.AsyncClient, fresh: str, wrapped: bool) -> None:
    # Given
    record = {
        "id": "a/b c?d%",
        "text": "frost\0 breaks \ud800 pumps",
        "payload": {"n": 1, "deep": {"x": [1, None]}},
        "parent": "p",
        "status": "ok",
        "occurred_at": "2026-01-31T13:00:00+01:00",
    }
    body = json.dumps({"records": [record]} if wrapped else [record])
    # When
    stored = await client.post(f"{fresh}/records", content=body, headers={"content-type": "application/json"})
    address = f"{fresh}/records/a/b%20c%3Fd%25"
    read = await client.get(address)
    deleted = await client.delete(address)
    # Then
    assert stored.json() == {"created": 1, "changed": 0, "unchanged": 0, "failed": []}
    assert read.json()["id"] == record["id"]
    assert read.json()["text"] == "frost\ufffd breaks \ufffd pumps"
    assert read.json()["payload"] == record["payload"]
    assert read.json()["occurred_at"] == "2026-01-31T12:00:00Z"
    assert read.json()["vector"] in ("waiting", "ready")
    assert deleted.status_code == 204
    assert (await client.delete(address)).status_code == 404
    assert (await client.get(address)).status_code == 404


async def test_the_same_records_again_change_nothing(client: httpx2.AsyncClient, fresh: str) -> None:
    records = [{"id": str(number), "text": f"text {number}"} for number in range(3)]
    await client.post(f"{fresh}/records", json=records)
    again = await client.post(f"{fresh}/records", json=[*records[:2], {"id": "2", "text": "new"}])
    assert again.json() == {"created": 0, "changed": 1, "unchanged": 2, "failed": []}


async def test_an_array_with_one_bad_record_stores_nothing(client: httpx2.AsyncClient, fresh: str) -> None:
    # When
    answer = await client.post(f"{fresh}/records", json=[{"id": "1", "text": "good"}, {"id": "2"}])
    # Then
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/1/text"]
    assert (await client.get(f"{fresh}/stats")).json()["records"] == 0


async def test_pointers_begin_where_the_document_does(client: httpx2.AsyncClient, fresh: str) -> None:
    twins = [{"id": "1", "text": "x"}, {"id": "1", "text": "y"}]
    bare = await client.post(f"{fresh}/records", json=twins)
    wrapped = await client.post(f"{fresh}/records", json={"records": twins})
    assert [fault["pointer"] for fault in bare.json()["errors"]] == ["/1/id"]
    assert [fault["pointer"] for fault in wrapped.json()["errors"]] == ["/records/1/id"]


async def test_many_faults_are_counted_and_twenty_listed(client: httpx2.AsyncClient, fresh: str) -> None:
    answer = (await client.post(f"{fresh}/records", json=[{"id": "", "text": "x"}] * 50)).json()
    assert answer["detail"].startswith("50 ")
    assert len(answer["errors"]) == 20


async def test_ndjson_names_each_bad_line_and_stores_the_rest(client: httpx2.AsyncClient, fresh: str) -> None:
    # When
    lines = ndjson(
        {"id": "1", "text": "one"},
        b"{broken",
        b"",
        {"id": "3"},
        b'{"id": "4", "text": "\xff"}',
        [],
        {"id": "6", "text": "six"},
    )
    answer = (await client.post(f"{fresh}/records", **lines)).json()
    # Then
    assert (answer["created"], answer["changed"], answer["unchanged"]) == (2, 0, 0)
    assert {fault["pointer"]: fault["code"] for fault in answer["failed"]} == {
        "/1": "malformed",
        "/3/text": "required",
        "/4": "malformed",
        "/5": "wrong_type",
    }
    assert (await client.get(f"{fresh}/records/6")).status_code == 200


async def test_ndjson_takes_more_than_a_batch_and_the_last_of_equal_ids(client: httpx2.AsyncClient, fresh: str) -> None:
    # When
    lines = [{"id": str(number % 700), "text": f"{number}"} for number in range(1_100)]
    answer = (await client.post(f"{fresh}/records", **ndjson(*lines))).json()
    # Then
    assert (answer["created"], answer["changed"], answer["failed"]) == (700, 400, [])
    assert (await client.get(f"{fresh}/records/399")).json()["text"] == "1099"


async def test_ndjson_that_is_none_stops_and_says_where(client: httpx2.AsyncClient, fresh: str) -> None:
    answer = (await client.post(f"{fresh}/records", **ndjson(*[b"x"] * 5_000, {"id": "1", "text": "x"}))).json()
    assert len(answer["failed"]) == 1_001
    assert answer["failed"][-1] == {
        "pointer": "/1000",
        "code": "stopped",
        "message": "More than 1000 lines are bad; this line and those after it are not stored.",
    }


async def test_a_line_with_many_faults_is_one_bad_line(client: httpx2.AsyncClient, fresh: str) -> None:
    bad = {"id": "", "text": "", "parent": 1, "status": 1, "unknown": 1}
    answer = (await client.post(f"{fresh}/records", **ndjson(*[bad] * 300, {"id": "1", "text": "x"}))).json()
    assert answer["created"] == 1
    assert len(answer["failed"]) == 1_500


@pytest.mark.parametrize(
    "error",
    [DatabaseUnavailable(), DatabaseUnavailable(code="database_busy"), Contended("40001"), DatabaseFailure("22000")],
)
async def test_ndjson_says_where_to_go_on_when_the_database_went_away(
    client: httpx2.AsyncClient, fresh: str, shared: Likewise, monkeypatch: pytest.MonkeyPatch, error: LikewiseError
) -> None:
    # Given
    write = shared.collections.write
    done = []

    async def breaks(*arguments: Any) -> Any:
        done.append(arguments)
        if len(done) == 2:
            raise error
        return await write(*arguments)

    monkeypatch.setattr(shared.collections, "write", breaks)
    # When: two blank lines and a bad one among those of the first batch
    lines = [b"", {"id": "0", "text": "x"}, b"", b"bad"]
    lines += [{"id": str(number), "text": "x"} for number in range(1, 2_000)]
    answer = await client.post(f"{fresh}/records", **ndjson(*lines))
    # Then
    told = answer.json()
    assert answer.status_code == 200
    assert told["created"] == 500
    assert [(fault["pointer"], fault["code"]) for fault in told["failed"]] == [
        ("/3", "malformed"),
        ("/503", "not_stored"),
    ]
    assert len(done) == 2
    assert (await client.get(f"{fresh}/stats")).json()["records"] == 500


async def test_ndjson_of_which_nothing_could_be_stored_is_503(
    client: httpx2.AsyncClient, fresh: str, shared: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: Any) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(shared.collections, "write", breaks)
    answer = await client.post(f"{fresh}/records", **ndjson({"id": "1", "text": "x"}))
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")


async def test_many_records_with_one_id_are_counted_and_twenty_listed(client: httpx2.AsyncClient, fresh: str) -> None:
    answer = (await client.post(f"{fresh}/records", json=[{"id": "1", "text": "x"}] * 50)).json()
    assert [fault["pointer"] for fault in answer["errors"]] == [f"/{place}/id" for place in range(1, 21)]


async def test_ndjson_lines_that_the_collection_refuses_are_named(client: httpx2.AsyncClient) -> None:
    # Given
    await client.post(URL, json={"name": "short-texts", "policy": {"on_long": "refuse"}})
    # When
    long = {"id": "long", "text": "word " * 300}
    lines = ndjson({"id": "1", "text": "short"}, b"", long, {"id": "2", "text": "short too"})
    answer = (await client.post(f"{URL}/short-texts/records", **lines)).json()
    # Then
    assert answer["created"] == 2
    assert [fault["pointer"] for fault in answer["failed"]] == ["/2/text"]


async def test_a_search_answers_by_query_and_by_record(client: httpx2.AsyncClient, fresh: str) -> None:
    # Given
    records = [{"id": str(number), "text": f"pump {number} is cold", "status": "ok"} for number in range(20)]
    await client.post(f"{fresh}/records", json=records)
    # When
    by_query = (await client.post(f"{fresh}/search", json={"query": "pump 7", "mode": "lexical", "limit": 3})).json()
    by_record = (await client.post(f"{fresh}/search", json={"like": "7", "mode": "lexical"})).json()
    # Then
    assert by_query["hits"][0]["id"] == "7"
    assert len(by_query["hits"]) == 3
    assert set(by_query["hits"][0]) == {"id", "score", "similarity", "lexical_score", "found_by", "group", "record"}
    assert by_query["hits"][0]["record"]["text"] == "pump 7 is cold"
    assert by_query["hits"][0]["found_by"] == ["lexical"]
    assert by_query["degraded"] == []
    assert by_query["took_ms"] > 0
    assert len(by_record["hits"]) == 10
    assert "7" not in [hit["id"] for hit in by_record["hits"]]


async def test_a_search_filters_and_takes_a_threshold_of_zero(client: httpx2.AsyncClient, shared: Any) -> None:
    # Given
    notes = shared.collection("thresholds")
    await notes.add([{"id": str(n), "text": f"the pump {n}", "payload": {"n": n}} for n in range(5)])
    # When
    body = {"query": "the pump", "threshold": 0.0, "filters": {"n": {"$gte": 3}}}
    answer = (await client.post(f"{URL}/thresholds/search", json=body)).json()
    # Then
    assert sorted(hit["id"] for hit in answer["hits"]) == ["3", "4"]


async def test_stats_count_what_is_there(client: httpx2.AsyncClient, fresh: str) -> None:
    await client.post(f"{fresh}/records", json=[{"id": "1", "text": "same"}, {"id": "2", "text": "same"}])
    stats = (await client.get(f"{fresh}/stats")).json()
    assert (stats["records"], stats["contents"], stats["failed"], stats["dimension"]) == (2, 1, 0, 384)
    assert set(stats) == {"records", "contents", "vectors", "waiting", "failed", "model", "dimension", "index"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "clusters"),
        ("POST", "clusters"),
        ("GET", "clusters/7"),
        ("POST", "reembed"),
        ("POST", "switch"),
        ("POST", "rollback"),
    ],
)
async def test_routes_of_later_versions_are_refused_by_name(client: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, f"{URL}/notes/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_supported")


async def test_an_app_collection_can_be_read_by_its_name(client: httpx2.AsyncClient) -> None:
    answer = await client.get(f"{URL}/segments:minilm-l6-v2")
    assert answer.status_code == 404
    assert answer.json()["code"] == "collection_not_found"
