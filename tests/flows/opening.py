"""A Likewise for more than one test, or with parts of one's own."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import likewise
from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import Provider
from likewise.library import Likewise
from likewise.settings import load_settings
from likewise.testing import ThrowawayPostgres


@asynccontextmanager
async def likewise_on(
    postgres: ThrowawayPostgres,
    folders: pytest.TempPathFactory,
    model: Provider | Callable[[], Provider],
    *,
    worker: bool = True,
    **options: Any,
) -> AsyncIterator[Likewise]:
    """One on a database of its own; `model` is what embeds, or what makes it; `options` are settings."""
    async with postgres.database() as urls:
        settings = load_settings(
            data_dir=folders.mktemp("data"), database_url=urls.owner, database_serving_url=urls.serving, **options
        )
        embedder = Embedder(settings, providers={settings.model: lambda spec: model() if callable(model) else model})
        async with likewise.open(settings, worker=worker, embedder=embedder) as lw:
            yield lw
