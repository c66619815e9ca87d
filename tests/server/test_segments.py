"""The routes of document segments and of jobs, as a program calls them."""

import asyncio
import json
import re
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from semantic_text_splitter import TextSplitter

import likewise
from likewise.auth.quotas import Quotas
from likewise.embedding.providers import local
from likewise.embedding.splitting import TextSpan, spans
from likewise.library import Likewise
from likewise.settings import Settings
from tests.embedding import tiny
from tests.patience import PATIENCE, until
from tests.server.conftest import calling

EMBED, BATCH, DOCUMENTS, SEARCH = "/vectors/embed", "/vectors/embed/batch", "/vectors/documents", "/vectors/search"
LATER, MOCK = "/vectors/search/async", "/vectors/mock"
COLLECTIONS = "/api/v1/collections"
COLD, WARM = "the pump fails when it is cold", "the valve leaks when it is warm"
JSON = {"content-type": "application/json"}
# What no refusal may repeat.
SECRET = "xyzzy-secret"

SETTINGS = {"max_body_bytes": 2**21}
BODIES: dict[str, dict[str, Any]] = {
    EMBED: {"asset_id": "manual", "segment_id": "1", "text": COLD},
    BATCH: {"asset_id": "manual", "segments": [{"segment_id": "1", "text": COLD}]},
    DOCUMENTS: {"asset_id": "manual", "text": COLD},
    SEARCH: {"query_text": COLD},
}
# Where the text is in each.
TEXT = {EMBED: "/text", BATCH: "/segments/0/text", DOCUMENTS: "/text", SEARCH: "/query_text"}


@pytest.fixture
def asset(request: pytest.FixtureRequest) -> str:
    """The id of an asset of the test's own."""
    return f"assets/{request.node.name}"


def segment(asset: str, text: str = COLD, segment_id: str = "1", **others: Any) -> dict[str, Any]:
    return {"asset_id": asset, "segment_id": segment_id, "text": text, **others}


async def ended(client: httpx2.AsyncClient, job: str) -> dict[str, Any]:
    """The job, once it has ended."""

    async def is_over() -> bool:
        return (await client.get(f"/jobs/{job}")).json()["status"] not in ("PENDING", "RUNNING")

    await until(is_over)
    told: dict[str, Any] = (await client.get(f"/jobs/{job}")).json()
    return told


async def stored(client: httpx2.AsyncClient, body: dict[str, Any], path: str = EMBED) -> dict[str, Any]:
    """What was answered to a body, once its job has ended."""
    accepted = await client.post(path, json=body)
    assert accepted.status_code in (200, 202), accepted.text
    await ended(client, accepted.json()["job_id"])
    answer: dict[str, Any] = accepted.json()
    return answer


async def results(client: httpx2.AsyncClient, query: str = COLD, **others: Any) -> list[dict[str, Any]]:
    answer = await client.post(SEARCH, json={"query_text": query, "limit": 100, **others})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def faults(answer: httpx2.Response) -> dict[str, str]:
    return {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]}


# What is stored and found


async def test_a_segment_is_accepted_embedded_found_and_deleted(client: httpx2.AsyncClient, asset: str) -> None:
    # When
    accepted = await client.post(EMBED, json=segment(asset, metadata={"lang": "en"}))
    job = await ended(client, accepted.json()["job_id"])
    found = await client.post(SEARCH, json={"query_text": COLD, "asset_id": asset})
    # Then
    assert accepted.status_code == 202
    assert (accepted.json()["asset_id"], accepted.json()["segment_id"]) == (asset, "1")
    assert set(job) == {"job_id", "kind", "status", "created_at", "updated_at", "result", "error"}
    assert (job["status"], job["error"]) == ("SUCCEEDED", None)
    assert set(job["result"]) == {
        *("point_id", "text_len", "truncated_len", "tokens", "truncated_tokens", "text_hash", "model", "model_ver")
    }
    assert set(found.json()) == {"results", "query_model", "query_model_ver", "total"}
    [hit] = found.json()["results"]
    assert hit["score"] > 0.99
    assert hit["point_id"] == job["result"]["point_id"] == accepted.json()["point_id"]
    assert hit["payload"]["lang"] == hit["payload"]["metadata"]["lang"] == "en"
    assert job["result"]["text_hash"] not in found.text
    assert COLD not in found.text
    # When it is deleted, twice
    deleted = [await client.delete(f"/vectors/{hit['point_id']}") for _ in range(2)]
    # Then
    assert [(one.status_code, one.content == b"") for one in deleted] == [(204, True), (404, False)]
    assert await results(client, asset_id=asset) == []


async def test_what_is_done_already_is_a_200(client: httpx2.AsyncClient, asset: str) -> None:
    first = await stored(client, segment(asset))
    again = await client.post(EMBED, json=segment(asset))
    assert (again.status_code, again.json()) == (200, first | {"status": "SUCCEEDED"})


async def test_an_asset_with_slashes_is_deleted_at_once(client: httpx2.AsyncClient, asset: str) -> None:
    batch = {"asset_id": asset, "segments": [{"segment_id": one, "text": COLD} for one in "abc"]}
    await stored(client, batch, BATCH)
    assert len(await results(client, asset_id=asset)) == 3
    deleted = [(await client.delete(f"/vectors/asset/{asset}")).status_code for _ in range(2)]
    assert deleted == [204, 404]
    assert await results(client, asset_id=asset) == []


async def test_a_document_says_where_its_segments_are(client: httpx2.AsyncClient, asset: str) -> None:
    text = "\n".join(f"Paragraph {number} 🙂 says that pump {number} is cold." for number in range(200))
    answer = await stored(client, {"asset_id": asset, "text": text, "max_tokens": 40, "overlap": 8}, DOCUMENTS)
    parts = answer["segments"]
    assert answer["total"] == len(parts) > 10
    assert (parts[0]["start"], parts[-1]["end"]) == (0, len(text))
    assert any(one["end"] > other["start"] for one, other in pairwise(parts))
    for part in (parts[0], parts[len(parts) // 2], parts[-1]):
        [hit, *_] = await results(client, text[part["start"] : part["end"]], asset_id=asset)
        assert (hit["payload"]["segment_id"], hit["score"] > 0.99) == (part["segment_id"], True)
        assert hit["payload"]["text_len"] == hit["payload"]["truncated_len"] == part["end"] - part["start"]


async def test_a_threshold_of_nothing_works_and_groups_have_one_each(client: httpx2.AsyncClient, asset: str) -> None:
    for number in range(3):
        await stored(client, segment(f"{asset}/{number % 2}", f"{COLD} {number}", str(number)))
    mine = {"$or": [{"asset_id": f"{asset}/0"}, {"asset_id": f"{asset}/1"}]}
    assert len(await results(client, filters=mine, threshold=0.0)) == 3
    assert await results(client, filters=mine, threshold=1) == []
    grouped = await results(client, filters=mine, group_by="asset_id")
    assert sorted(hit["payload"]["asset_id"] for hit in grouped) == [f"{asset}/0", f"{asset}/1"]


async def test_a_search_that_is_a_job_has_the_answer_of_one_that_is_not(client: httpx2.AsyncClient, asset: str) -> None:
    # Given
    await stored(client, segment(asset))
    asked = {"query_text": COLD, "asset_id": asset, "threshold": 0.0}
    # When
    accepted = await client.post(LATER, json=asked)
    job = await ended(client, accepted.json()["job_id"])
    # Then
    assert accepted.status_code == 202
    assert (job["status"], job["error"]) == ("SUCCEEDED", None)
    assert job["result"] == (await client.post(SEARCH, json=asked)).json()
    # And what is wrong is said at once, as far as it can be
    refused = await client.post(LATER, json=asked | {"filters": {"$wrong": 1}})
    assert (refused.status_code, faults(refused)) == (422, {"/filters": "unknown_operator"})


async def test_fields_that_nobody_knows_are_ignored_and_not_kept(client: httpx2.AsyncClient, asset: str) -> None:
    more = {"content": SECRET, "raw": {"text": SECRET}}
    await stored(client, segment(asset) | more)
    batch = {"asset_id": asset, "segments": [{"segment_id": "2", "text": WARM, **more}], **more}
    await stored(client, batch, BATCH)
    await stored(client, {"asset_id": f"{asset} 2", "text": COLD, **more}, DOCUMENTS)
    found = await client.post(SEARCH, json={"query_text": COLD, "asset_id": asset, **more})
    assert len(found.json()["results"]) == 2
    assert SECRET not in found.text


@pytest.mark.parametrize(
    ("name", "value"), [("filter", {"asset_id": "a"}), ("where", {}), ("top_k", 3), ("k", 3), ("n_results", 3)]
)
async def test_the_fields_of_other_systems_are_refused_where_they_would_mislead(
    client: httpx2.AsyncClient, name: str, value: Any
) -> None:
    refused = await client.post(SEARCH, json={"query_text": COLD, name: value})
    assert (refused.status_code, faults(refused)) == (422, {f"/{name}": "unknown_field"})
    assert ("filters" if name in ("filter", "where") else "limit") in refused.json()["errors"][0]["message"]


async def test_null_is_the_same_as_absent(client: httpx2.AsyncClient, asset: str) -> None:
    await stored(client, segment(asset, model=None, model_ver=None, metadata=None))
    names = ("limit", "asset_id", "segment_id", "model", "filters", "mode", "rerank", "threshold", "group_by")
    assert await results(client, **dict.fromkeys(names, None))


async def test_a_key_answers_the_same_without_doing_it_again(client: httpx2.AsyncClient, asset: str) -> None:
    key = {"idempotency-key": uuid4().hex}
    first = await client.post(EMBED, json=segment(asset), headers=key)
    await ended(client, first.json()["job_id"])
    await client.post(EMBED, json=segment(asset, WARM))
    again = await client.post(EMBED, json=segment(asset), headers=key)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotency-replayed"] == "true"


async def test_what_the_page_shows_can_be_sent(client: httpx2.AsyncClient) -> None:
    page = (Path(__file__).parents[2] / "docs" / "segments.md").read_text(encoding="utf-8")
    shown = re.findall(r"""\$ curl \$api(/\S+) -H "\$json" -d '(.*?)'""", page, re.DOTALL)
    assert [path for path, _ in shown] == [EMBED, SEARCH, DOCUMENTS]
    for path, body in shown:
        answer = await client.post(path, content=body, headers=JSON)
        assert answer.status_code in (200, 202), answer.text


# Jobs


async def test_jobs_are_listed_by_pages(client: httpx2.AsyncClient, asset: str) -> None:
    # Given
    made = [(await stored(client, segment(asset, f"{COLD} {number}")))["job_id"] for number in range(5)]
    # When
    seen: list[str] = []
    cursor = None
    while True:
        asked = {"limit": 2, "status": "SUCCEEDED"} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/jobs", params=asked)).json()
        seen += [one["job_id"] for one in page["jobs"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    # Then
    assert seen[:5] == made[::-1]
    assert len(set(seen)) == len(seen)
    for wrong in ({"limit": 0}, {"limit": 101}, {"status": "DONE"}, {"cursor": "zz"}, {"page": 1}):
        assert (await client.get("/jobs", params=wrong)).status_code == 422
    other = await client.get("/jobs", params={"limit": 2})
    foreign = await client.get("/jobs", params={"cursor": other.json()["cursor"], "status": "FAILED"})
    assert faults(foreign) == {"/cursor": "invalid_cursor"}


async def test_a_job_that_has_ended_is_neither_cancelled_nor_tried_again(
    client: httpx2.AsyncClient, asset: str
) -> None:
    job = (await stored(client, segment(asset)))["job_id"]
    answers = [await client.post(f"/jobs/{job}/{verb}") for verb in ("cancel", "retry")]
    assert [(one.status_code, one.json()["code"]) for one in answers] == [(409, "job_ended"), (409, "nothing_failed")]


@pytest.mark.parametrize("wrong", [uuid4(), UUID(int=0), "zz", "%00", "1", "../none"])
async def test_a_job_or_a_point_that_is_not_there(client: httpx2.AsyncClient, wrong: object) -> None:
    for method, path in (
        ("GET", "/jobs/{}"),
        ("POST", "/jobs/{}/cancel"),
        ("POST", "/jobs/{}/retry"),
        ("DELETE", "/vectors/{}"),
    ):
        answer = await client.request(method, path.format(wrong))
        thing = "point" if "vectors" in path else "job"
        missing = (404, f"{thing}_not_found" if isinstance(wrong, UUID) else "not_found")
        told = (answer.status_code, answer.json()["code"])
        assert told == ((400, "malformed") if wrong == "%00" else missing), (method, path)


# Bad input


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("text", ["", " \n\t", "\u2003", None, 7, ["a"], {"a": 1}, "x" * 200_001])
async def test_a_text_is_a_text_with_words(client: httpx2.AsyncClient, path: str, text: Any) -> None:
    body = json.loads(json.dumps(BODIES[path]))
    if path == BATCH:
        body["segments"][0]["text"] = text
    else:
        body[TEXT[path].strip("/")] = text
    answer = await client.post(path, json=body)
    assert answer.status_code == 422
    assert set(faults(answer)) == {TEXT[path]}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("model", ["", "../../etc/passwd", "https://example.org/model", "mock", "m" * 10_000])
async def test_a_model_that_is_not_allowed(client: httpx2.AsyncClient, path: str, model: str) -> None:
    answer = await client.post(path, json=BODIES[path] | {"model": model})
    assert (answer.status_code, faults(answer)) == (422, {"/model": "model_not_allowed"})
    assert model not in answer.text or len(model) < 5


@pytest.mark.parametrize("id_", ["", "x" * 513, "a\x00b", "a\nb", "a\ufffdb", None, 7])
@pytest.mark.parametrize("name", ["asset_id", "segment_id"])
async def test_an_id_that_cannot_be_one(client: httpx2.AsyncClient, name: str, id_: Any) -> None:
    answer = await client.post(EMBED, json=BODIES[EMBED] | {name: id_})
    assert (answer.status_code, set(faults(answer))) == (422, {f"/{name}"})


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"segments": []}, "/segments"),
        ({"segments": None}, "/segments"),
        ({"segments": [{"segment_id": "1", "text": "a"}] * 1_001}, "/segments"),
        ({"segments": [{"segment_id": "1", "text": "a"}, {"segment_id": "1", "text": "b"}]}, "/segments/1/segment_id"),
        ({"segments": [{"segment_id": "1", "text": "a"}, {"segment_id": "2"}]}, "/segments/1/text"),
        ({"segments": [{"segment_id": "1", "text": "a", "metadata": {"a": "x" * 70_000}}]}, "/segments/0/metadata"),
        ({"segments": [{"segment_id": "1", "text": "a", "metadata": [1]}]}, "/segments/0/metadata"),
    ],
)
async def test_a_batch_is_stored_whole_or_not_at_all(
    client: httpx2.AsyncClient, asset: str, body: dict[str, Any], pointer: str
) -> None:
    answer = await client.post(BATCH, json={"asset_id": asset, **body})
    assert (answer.status_code, set(faults(answer))) == (422, {pointer})
    assert await results(client, asset_id=asset) == []


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"limit": 0}, "/limit"),
        ({"limit": 101}, "/limit"),
        ({"limit": "5"}, "/limit"),
        ({"threshold": 2}, "/threshold"),
        ({"threshold": "0"}, "/threshold"),
        ({"mode": "hybrid"}, "/mode"),
        ({"mode": "lexical"}, "/mode"),
        ({"mode": "fuzzy"}, "/mode"),
        ({"rerank": True}, "/rerank"),
        ({"filters": {"$wrong": SECRET}}, "/filters"),
        ({"filters": {"x') OR '1'='1": 1}}, "/filters"),
        ({"filters": {"a": {"$wrong": SECRET}}}, "/filters/a"),
        ({"group_by": "$.a"}, "/group_by"),
    ],
)
async def test_a_question_that_makes_no_sense(client: httpx2.AsyncClient, wrong: dict[str, Any], pointer: str) -> None:
    await stored(client, segment("there"))
    answer = await client.post(SEARCH, json={"query_text": COLD, "asset_id": "there"} | wrong)
    assert (answer.status_code, set(faults(answer))) == (422, {pointer})
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\u0301" * 200_000, id="combining marks"),
        pytest.param("_" * 50_000, id="underscores"),
        pytest.param("x" * 200_000, id="one letter"),
        pytest.param("a " * 100_000, id="words of a letter"),
        pytest.param("今日は天気がいい" * 25_000, id="Japanese"),
        pytest.param(("今" * 999 + " ") * 200, id="runs that are just short enough"),
        pytest.param("a\x00b\ud83d c" * 1_000, id="NUL and half an emoji"),
        pytest.param("\x1c" * 1_000 + "a", id="separators"),
    ],
)
async def test_texts_that_are_hard_to_cut(client: httpx2.AsyncClient, asset: str, text: str) -> None:
    answer = await client.post(DOCUMENTS, content=json.dumps({"asset_id": asset, "text": text}), headers=JSON)
    assert answer.status_code == 202, answer.text
    parts = [(one["start"], one["end"]) for one in answer.json()["segments"]]
    assert parts == sorted(parts)
    outside = set(range(len(text))) - {at for start, end in parts for at in range(start, end)}
    assert all(text[at].isspace() for at in outside)


async def test_ten_megabytes_of_one_letter(client: httpx2.AsyncClient) -> None:
    answer = await client.post(DOCUMENTS, json={"asset_id": "a", "text": "x" * 10_000_000})
    assert answer.status_code == 413


@pytest.mark.parametrize("body", [{"overlap": -1}, {"max_tokens": 15}, {"max_tokens": 32, "overlap": 17}])
async def test_parts_that_cannot_be_made(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post(DOCUMENTS, json=BODIES[DOCUMENTS] | body)
    assert (answer.status_code, len(faults(answer))) == (422, 1)


@pytest.mark.parametrize("path", BODIES)
async def test_texts_count_against_the_quota(
    client: httpx2.AsyncClient, shared: Likewise, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # Given 10 tokens a minute
    for name, value in vars(Quotas(10)).items():
        monkeypatch.setattr(shared.runtime.quotas, name, value)
    # When what is refused for its model comes first, which takes nothing
    assert (await client.post(path, json=BODIES[path] | {"model": "nothing"})).status_code == 422
    answers = [await client.post(path, json=BODIES[path]) for _ in range(3)]
    # Then
    assert answers[0].status_code in (200, 202)
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1


# What else is there, and is not


async def test_the_general_api_shows_the_collection_and_leaves_it_to_the_app(
    client: httpx2.AsyncClient, asset: str
) -> None:
    await stored(client, segment(asset))
    mine = f"{COLLECTIONS}/segments:minilm-l6-v2"
    shown = (await client.get(mine)).json()
    assert (shown["kind"], shown["policy"]["keep_terms"]) == ("segments", False)
    assert (await client.post(f"{mine}/search", json={"query": COLD, "mode": "dense"})).json()["hits"]
    refused = [
        await client.post(f"{mine}/records", json=[{"id": "a", "text": "b"}]),
        await client.delete(f"{mine}/records/a"),
        await client.delete(mine),
    ]
    assert [(one.status_code, one.json()["code"]) for one in refused] == [(409, "collection_of_app")] * 3


async def test_a_search_before_anything_is_stored_makes_nothing(lw: Likewise) -> None:
    async with calling(lw) as client:
        found = await client.post(SEARCH, json={"query_text": COLD})
        assert (found.status_code, found.json()["results"], found.json()["total"]) == (200, [], 0)
        assert found.json()["query_model"] == "sentence-transformers/all-MiniLM-L6-v2"
        assert (await client.post(SEARCH, json={"query_text": COLD, "model": "nothing"})).status_code == 422
        assert (await client.post(SEARCH, json={"query_text": COLD, "filters": {"$x": 1}})).status_code == 422
        assert (await client.get(COLLECTIONS)).json()["collections"] == []


async def test_made_up_vectors_are_not_there_unless_the_settings_say_so(client: httpx2.AsyncClient) -> None:
    assert (await client.post(MOCK, json=BODIES[EMBED])).status_code == 404
    document = (await client.get("/openapi.json")).json()
    assert MOCK not in document["paths"]


@pytest.fixture
def mocking(settings: Settings) -> Settings:
    """Settings with made-up vectors."""
    return settings.model_copy(update={"enable_mock": True})


async def test_made_up_vectors_stay_among_themselves(mocking: Settings) -> None:
    async with likewise.open(mocking) as lw, calling(lw) as client:
        # When
        told = [await stored(client, segment("manual", text, text), MOCK) for text in (COLD, WARM)]
        found = await results(client, COLD, model="mock")
        # Then
        assert found[0]["score"] == pytest.approx(1.0, abs=0.01)
        assert abs(found[1]["score"]) < 0.3
        assert found[0]["payload"]["model"] == "mock"
        assert found[0]["point_id"] == told[0]["point_id"]
        assert (await client.get(f"{COLLECTIONS}/segments:mock")).status_code == 200
        # And nothing else takes such a model
        assert "mock" not in (await client.get("/v1/models")).text
        assert "mock" not in (await client.get("/embed/models")).text
        refused = [
            await client.post("/v1/embeddings", json={"input": "a", "model": "mock"}),
            await client.post("/embed/text", json={"text": "a", "model": "mock"}),
            await client.post(COLLECTIONS, json={"name": "mine", "model": "mock"}),
            await client.post(EMBED, json=segment("manual", model="mock")),
        ]
        assert [one.status_code for one in refused] == [404, 422, 422, 422]


async def test_a_point_is_the_same_wherever_it_is_worked_out(client: httpx2.AsyncClient) -> None:
    told = await stored(client, segment("manual", model_ver="v7"))
    assert told["point_id"] == "0031c6f4-f880-50da-9f21-780bb5f94891"


async def test_who_cuts_a_long_text_answers_the_others(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a model of ours, and a text that is being cut for as long as the test wants
    cutting, go_on = threading.Event(), threading.Event()

    def held(text: str, splitter: TextSplitter) -> list[TextSpan]:
        cutting.set()
        assert go_on.wait(PATIENCE)
        return spans(text, splitter)

    monkeypatch.setattr(local, "spans", held)
    chosen = settings.model_copy(update={"model": str(tiny.write_folder(tmp_path / "model", tiny.weights()))})
    async with likewise.open(chosen, worker=False) as lw, calling(lw) as client:
        sent = asyncio.create_task(client.post(DOCUMENTS, json={"asset_id": "manual", "text": "alpha beta. " * 100}))
        try:
            await until(cutting.is_set)
            # When
            others = [(await client.get(path)).status_code for path in ("/livez", "/jobs", COLLECTIONS)]
            # Then they have their answers first
            assert (others, sent.done()) == ([200] * 3, False)
        finally:
            go_on.set()
        answer = await sent
    assert (answer.status_code, answer.json()["total"] > 10) == (202, True)
