"""What OpenAI's client makes of a server that wants keys and counts tokens."""

import asyncio

import pytest
from live_server import QUOTA, LiveServer
from openai import AsyncOpenAI, AuthenticationError, OpenAI, PermissionDeniedError, RateLimitError
from openai.types import CreateEmbeddingResponse

MODEL = "minilm-l6-v2"
# A quota counts four characters as a token.
A_MINUTE = "pump" * QUOTA
A_SECOND = "pump"


def asking(server: LiveServer, key: str) -> OpenAI:
    return OpenAI(base_url=server.api, api_key=key)


def test_a_key_is_what_the_client_calls_an_api_key(guarded: LiveServer) -> None:
    client = asking(guarded, guarded.key("acme"))
    assert client.embeddings.create(model=MODEL, input="hello").data
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_wrong_key_and_one_that_may_not_read(guarded: LiveServer) -> None:
    with pytest.raises(AuthenticationError) as refused:
        asking(guarded, "sk-somebody-elses").embeddings.create(model=MODEL, input="hello")
    assert refused.value.code == "unauthorized"
    with pytest.raises(PermissionDeniedError) as refused_too:
        asking(guarded, guarded.key("acme", scopes="write")).embeddings.create(model=MODEL, input="hello")
    assert refused_too.value.code == "insufficient_scope"


def test_the_client_waits_until_there_is_quota_again(guarded: LiveServer) -> None:
    # Given
    client = asking(guarded, guarded.key("patient"))
    client.embeddings.create(model=MODEL, input=A_MINUTE)
    # When
    answer = client.embeddings.with_raw_response.create(model=MODEL, input=A_SECOND)
    # Then
    assert answer.retries_taken > 0
    assert answer.parse().data


async def test_who_asks_for_more_than_there_is_hears_it_in_the_end(guarded: LiveServer) -> None:
    # Given a quota that gives one token a second, and twenty requests that try twice
    async with AsyncOpenAI(base_url=guarded.api, api_key=guarded.key("greedy"), max_retries=1) as client:
        await client.embeddings.create(model=MODEL, input=A_MINUTE)
        # When
        many = [client.embeddings.create(model=MODEL, input=A_SECOND) for _ in range(20)]
        outcomes = await asyncio.gather(*many, return_exceptions=True)
    # Then
    refused = [outcome for outcome in outcomes if isinstance(outcome, RateLimitError)]
    served = [outcome for outcome in outcomes if isinstance(outcome, CreateEmbeddingResponse)]
    assert refused
    assert served
    assert len(refused) + len(served) == 20
    for error in refused:
        assert error.code == "quota_exceeded"
        assert 1 <= int(error.response.headers["retry-after"]) <= 120
        assert error.request.headers["x-stainless-retry-count"] == "1"
