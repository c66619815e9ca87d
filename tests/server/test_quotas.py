"""A tenant that has used up its quota hears when to come back."""

import json
from collections.abc import AsyncIterator

import httpx2
import pytest

from likewise.auth.quotas import Quotas
from likewise.library import Likewise

NDJSON = {"content-type": "application/x-ndjson"}
URL = "/api/v1/collections/notes"


@pytest.fixture
async def bounded(shared: Likewise) -> AsyncIterator[None]:
    """100 tokens a minute, as if nobody had called yet."""
    before = shared.runtime.quotas.__dict__.copy()
    shared.runtime.quotas.__dict__.update(Quotas(100).__dict__)
    yield
    shared.runtime.quotas.__dict__.update(before)


def records(count: int, characters: int) -> list[dict[str, str]]:
    return [{"id": str(number), "text": "x" * characters} for number in range(count)]


@pytest.mark.usefixtures("bounded")
async def test_texts_and_queries_count_and_then_it_is_429(client: httpx2.AsyncClient) -> None:
    # Given
    assert (await client.post(f"{URL}/records", json=records(2, 160))).status_code == 200
    assert (await client.post(f"{URL}/search", json={"query": "x" * 60})).status_code == 200
    assert (await client.post(f"{URL}/search", json={"like": "a"})).status_code == 200
    # When
    refused = [
        await client.post(f"{URL}/records", json=records(1, 160)),
        await client.post(f"{URL}/records", content=json.dumps(records(1, 160)[0]), headers=NDJSON),
        await client.post(f"{URL}/search", json={"query": "x" * 160}),
    ]
    # Then
    for answer in refused:
        assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (429, "quota_exceeded", True)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (await client.get(f"{URL}/records/a")).status_code == 200


@pytest.mark.usefixtures("bounded")
async def test_a_request_beyond_a_whole_minute_is_413(client: httpx2.AsyncClient) -> None:
    for answer in (
        await client.post(f"{URL}/records", json=records(3, 160)),
        await client.post(f"{URL}/search", json={"query": "x" * 500}),
    ):
        assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (
            413,
            "larger_than_quota",
            False,
        )


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(("characters", "words"), [(100, "later"), (500, "never")])
async def test_lines_beyond_the_quota_are_named(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, characters: int, words: str
) -> None:
    # Given lines that are stored two at a time
    monkeypatch.setattr("likewise.apps.collections.lines.BATCH", 2)
    lines = [json.dumps({"id": str(n), "text": "x" * (160 if n < 2 else characters)}) for n in range(5)]
    # When
    answer = await client.post(f"{URL}/records", content="\n".join(lines), headers=NDJSON)
    # Then
    assert answer.status_code == 200
    (fault,) = answer.json()["failed"]
    assert (fault["pointer"], fault["code"]) == ("/2", "not_stored")
    assert words in fault["message"]
