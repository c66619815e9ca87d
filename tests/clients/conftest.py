"""Two servers for the run, and clients that speak with nobody else."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if find_spec("openai") is None:
    pytest.exit("These tests have an environment of their own: run `make test-clients`.", returncode=4)

# Before they are imported: they would fetch lists of prices, and tell of what was called.
os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS="True",
    LANGSMITH_TRACING="false",
    HF_HUB_OFFLINE="1",
)

from live_server import DEFAULT_MODEL, MODELS, QUOTA, SHORTENED, Failed, LiveServer, likewise, running
from openai import OpenAI
from texts import TEXTS


def _only_loopback(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in ("127.0.0.1", b"127.0.0.1", "localhost", "::1", None):
        raise ConnectionRefusedError("A client wants to speak with somebody else than our server.")


sys.addaudithook(_only_loopback)


@pytest.fixture(scope="session")
def models() -> Path:
    """A folder with the default model's weights, fetched once and kept between runs; CI cannot do without it."""
    try:
        likewise("models", "pull", DEFAULT_MODEL, LIKEWISE_MODELS_DIR=str(MODELS), LIKEWISE_DATA_DIR=str(MODELS.parent))
    except Failed as failed:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the default model's weights cannot be had: {failed}")
    return MODELS


@pytest.fixture(scope="session")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that takes every caller of this machine."""
    rows = tmp_path_factory.mktemp("settings") / "models.toml"
    rows.write_text(f'[[model]]\nname = "{SHORTENED}"\nfolder = "{models / DEFAULT_MODEL}"\nmatryoshka = true\n')
    with running(LIKEWISE_MODELS_FILE=str(rows)) as started:
        yield started


@pytest.fixture(scope="session")
def guarded(models: Path) -> Iterator[LiveServer]:
    """A server that wants keys, with a small quota for each tenant."""
    with running(LIKEWISE_AUTH="keys", LIKEWISE_QUOTA_TOKENS_PER_MINUTE=str(QUOTA)) as started:
        yield started


@pytest.fixture(scope="session")
def client(server: LiveServer) -> Iterator[OpenAI]:
    """OpenAI's client of it."""
    with OpenAI(base_url=server.api, api_key="none") as opened:
        yield opened


@pytest.fixture(scope="session")
def vectors(client: OpenAI) -> np.ndarray:
    """The vectors of TEXTS as OpenAI's client has them, float32 (3, 384)."""
    answer = client.embeddings.create(model=DEFAULT_MODEL, input=list(TEXTS))
    return np.array([row.embedding for row in answer.data], dtype=np.float32)
