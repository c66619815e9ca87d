"""LiteLLM, which takes this for OpenAI at another address."""

from typing import Any

import litellm
import numpy as np
import pytest
from live_server import SHORTENED, LiveServer
from texts import PUMP, TEXTS


@pytest.fixture
def options(server: LiveServer) -> dict[str, Any]:
    return {"model": "openai/all-MiniLM-L6-v2", "api_base": server.api, "api_key": "none", "num_retries": 0}


def test_texts(options: dict[str, Any], vectors: np.ndarray) -> None:
    # When
    answer = litellm.embedding(input=list(TEXTS), **options)
    # Then
    assert np.allclose([row["embedding"] for row in answer.data], vectors, atol=1e-6)
    assert [row["index"] for row in answer.data] == [0, 1, 2]
    assert answer.model == "all-MiniLM-L6-v2"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


async def test_texts_asynchronously(options: dict[str, Any], vectors: np.ndarray) -> None:
    answer = await litellm.aembedding(input=list(TEXTS), **options)
    assert np.allclose([row["embedding"] for row in answer.data], vectors, atol=1e-6)


def test_fewer_dimensions_once_litellm_lets_them_pass(options: dict[str, Any]) -> None:
    # Given LiteLLM knows of OpenAI's models only that they can be shortened
    asked = {**options, "model": f"openai/{SHORTENED}", "input": [PUMP], "dimensions": 128}
    with pytest.raises(litellm.UnsupportedParamsError):
        litellm.embedding(**asked)
    # When
    answer = litellm.embedding(**asked, allowed_openai_params=["dimensions"])
    # Then
    assert len(answer.data[0]["embedding"]) == 128


def test_errors_are_what_litellm_calls_them(options: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError, match="model_not_found"):
        litellm.embedding(**{**options, "model": "openai/nowhere"}, input=[PUMP])
    with pytest.raises(litellm.BadRequestError, match="blank"):
        litellm.embedding(input=[PUMP, " "], **options)


def test_a_wrong_key(options: dict[str, Any], guarded: LiveServer) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.embedding(**{**options, "api_base": guarded.api}, input=[PUMP])
