"""LangChain's `OpenAIEmbeddings`."""

from importlib import resources

import numpy as np
import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings
from live_server import SHORTENED, LiveServer
from openai import BadRequestError
from texts import INVOICES, PARAPHRASE, PUMP, TEXTS

HINT = "check_embedding_ctx_length=False"


@pytest.fixture
def embeddings(server: LiveServer) -> OpenAIEmbeddings:
    """As the documentation says."""
    return OpenAIEmbeddings(
        model="all-MiniLM-L6-v2", base_url=server.api, api_key="none", check_embedding_ctx_length=False
    )


@pytest.fixture
def as_it_comes(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> OpenAIEmbeddings:
    """Without what the documentation says, and with the tokenizer that it would fetch; LiteLLM brings it along."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(resources.files("litellm") / "litellm_core_utils" / "tokenizers"))
    return OpenAIEmbeddings(model="all-MiniLM-L6-v2", base_url=server.api, api_key="none")


def test_documents_and_queries(embeddings: OpenAIEmbeddings, vectors: np.ndarray) -> None:
    assert np.allclose(embeddings.embed_documents(list(TEXTS)), vectors, atol=1e-6)
    assert np.allclose(embeddings.embed_query(PARAPHRASE), vectors[1], atol=1e-6)


async def test_documents_and_queries_asynchronously(embeddings: OpenAIEmbeddings, vectors: np.ndarray) -> None:
    assert np.allclose(await embeddings.aembed_documents(list(TEXTS)), vectors, atol=1e-6)
    assert np.allclose(await embeddings.aembed_query(PARAPHRASE), vectors[1], atol=1e-6)


def test_more_documents_than_go_into_one_request(embeddings: OpenAIEmbeddings) -> None:
    # Given LangChain sends a thousand at a time
    texts = [f"number {number}" for number in range(1_100)]
    # When
    made = embeddings.embed_documents(texts)
    # Then
    assert len(made) == 1_100
    assert np.allclose(made[1_050], embeddings.embed_query(texts[1_050]), atol=1e-6)


def test_fewer_dimensions(server: LiveServer) -> None:
    shortened = OpenAIEmbeddings(
        model=SHORTENED, base_url=server.api, api_key="none", dimensions=128, check_embedding_ctx_length=False
    )
    assert len(shortened.embed_query(PUMP)) == 128


def test_a_store_of_vectors_finds_what_means_the_same(embeddings: OpenAIEmbeddings) -> None:
    # Given
    store = InMemoryVectorStore.from_texts([PUMP, INVOICES], embeddings)
    # When
    found = store.similarity_search_with_score(PARAPHRASE, k=2)
    # Then
    assert [document.page_content for document, _ in found] == [PUMP, INVOICES]


def test_token_ids_are_refused_and_the_error_says_what_to_set(as_it_comes: OpenAIEmbeddings) -> None:
    for ask in (lambda: as_it_comes.embed_documents(list(TEXTS)), lambda: as_it_comes.embed_query(PUMP)):
        with pytest.raises(BadRequestError, match=HINT) as refused:
            ask()
        assert refused.value.code == "token_ids"


async def test_token_ids_are_refused_asynchronously_too(as_it_comes: OpenAIEmbeddings) -> None:
    with pytest.raises(BadRequestError, match=HINT):
        await as_it_comes.aembed_documents(list(TEXTS))


def test_a_blank_document_is_named(embeddings: OpenAIEmbeddings) -> None:
    with pytest.raises(BadRequestError) as refused:
        embeddings.embed_documents([PUMP, ""])
    assert refused.value.param == "input.1"
