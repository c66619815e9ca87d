"""Errors under `/v1/`, in the words that OpenAI's clients go by."""

import httpx2

from likewise.auth.caller import Scope
from likewise.settings import Settings
from tests.auth.keys import make_key

SETTINGS = {"auth": "keys", "quota_tokens_per_minute": 10}


async def test_the_type_says_what_kind_of_error_it_is(client: httpx2.AsyncClient, shared_settings: Settings) -> None:
    # Given
    reader = await make_key(shared_settings, "acme", Scope.READ)
    writer = await make_key(shared_settings, "acme", Scope.WRITE)
    for key, text, status, kind, code in (
        ("lw_wrong", "x", 401, "authentication_error", "unauthorized"),
        (writer, "x", 403, "permission_error", "insufficient_scope"),
        (reader, " ", 400, "invalid_request_error", "blank"),
        (reader, "x" * 41, 413, "invalid_request_error", "larger_than_quota"),
        (reader, "x" * 36, 200, None, None),
        (reader, "y" * 36, 429, "rate_limit_error", "quota_exceeded"),
    ):
        # When
        answer = await client.post("/v1/embeddings", json={"input": text}, headers={"authorization": f"Bearer {key}"})
        # Then
        error = answer.json().get("error", {})
        assert (answer.status_code, error.get("type"), error.get("code")) == (status, kind, code)
