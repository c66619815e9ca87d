"""LlamaIndex's `OpenAILikeEmbedding`."""

import numpy as np
import pytest
from live_server import SHORTENED, LiveServer
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from openai import BadRequestError, NotFoundError
from texts import PARAPHRASE, PUMP, TEXTS


@pytest.fixture
def embedding(server: LiveServer) -> OpenAILikeEmbedding:
    return OpenAILikeEmbedding(model_name="all-MiniLM-L6-v2", api_base=server.api, api_key="none")


def test_texts_and_queries(embedding: OpenAILikeEmbedding, vectors: np.ndarray) -> None:
    assert np.allclose(embedding.get_text_embedding(PUMP), vectors[0], atol=1e-6)
    assert np.allclose(embedding.get_text_embedding_batch(list(TEXTS)), vectors, atol=1e-6)
    assert np.allclose(embedding.get_query_embedding(PARAPHRASE), vectors[1], atol=1e-6)


async def test_texts_and_queries_asynchronously(embedding: OpenAILikeEmbedding, vectors: np.ndarray) -> None:
    assert np.allclose(await embedding.aget_text_embedding(PUMP), vectors[0], atol=1e-6)
    assert np.allclose(await embedding.aget_text_embedding_batch(list(TEXTS)), vectors, atol=1e-6)
    assert np.allclose(await embedding.aget_query_embedding(PARAPHRASE), vectors[1], atol=1e-6)


def test_more_texts_than_go_into_one_request(embedding: OpenAILikeEmbedding) -> None:
    # Given LlamaIndex sends ten at a time
    texts = [f"number {number}" for number in range(35)]
    # When
    made = embedding.get_text_embedding_batch(texts)
    # Then
    assert np.allclose(made[34], embedding.get_text_embedding(texts[34]), atol=1e-6)


def test_fewer_dimensions(server: LiveServer) -> None:
    shortened = OpenAILikeEmbedding(model_name=SHORTENED, api_base=server.api, api_key="none", dimensions=128)
    assert len(shortened.get_text_embedding(PUMP)) == 128


def test_what_is_refused_is_not_tried_again(server: LiveServer, embedding: OpenAILikeEmbedding) -> None:
    with pytest.raises(BadRequestError) as blank:
        embedding.get_text_embedding_batch([PUMP, " "])
    assert blank.value.param == "input.1"
    elsewhere = OpenAILikeEmbedding(model_name="text-embedding-3-small", api_base=server.api, api_key="none")
    with pytest.raises(NotFoundError) as unknown:
        elsewhere.get_text_embedding(PUMP)
    assert unknown.value.code == "model_not_found"
