"""A server on real files that leaves the embedding to workers in processes of their own, with a model at an address."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from likewise.testing import LiveServer, LiveWorker, Upstream, open_folder
from tests.ingest.rows import asked, url_of
from tests.jobs import ended_over_http
from tests.models_file import models_file
from tests.patience import PATIENCE


@dataclass
class House:
    """The server, its model, and what its workers need; where they all log, and everything that was answered."""

    folder: Path
    server: LiveServer
    client: httpx2.AsyncClient
    upstream: Upstream
    environment: dict[str, str]
    log: Path
    answers: list[str] = field(default_factory=list)

    def worker(self, log: Path | None = None, **more: str) -> LiveWorker:
        """One that is not started yet; `more` are variables that the others do not have."""
        return LiveWorker(self.folder, self.environment | more, log=log or self.log)

    async def embed(self, asset: str, texts: dict[str, str] | list[str], **others: Any) -> str:
        """Send texts, by the ids of their segments or in order; the id of their job."""
        named = texts if isinstance(texts, dict) else {f"s{place}": text for place, text in enumerate(texts)}
        segments = [{"segment_id": name, "text": text, **others} for name, text in named.items()]
        answer = await self.client.post("/vectors/embed/batch", json={"asset_id": asset, "segments": segments})
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["job_id"])

    async def ended(self, job: str) -> dict[str, Any]:
        """A job, once it has ended."""
        return await ended_over_http(self.client, job)

    async def asked(self, statement: Any, user: str = "likewise_owner") -> list[tuple[Any, ...]]:
        """Rows, seen as their owner unless another is named."""
        return await asked(url_of(self.folder, user), statement)

    async def _keep(self, answer: httpx2.Response) -> None:
        await answer.aread()
        self.answers.append(answer.text + str(answer.headers))


@asynccontextmanager
async def open_house(tmp_path: Path, **more: str) -> AsyncIterator[House]:
    """One of the test's own; `more` are variables of its processes. It has no worker yet."""
    folder = open_folder()
    log = tmp_path / "log"
    try:
        async with Upstream().running() as upstream:
            environment = {
                "LIKEWISE_MODELS_FILE": str(models_file(tmp_path, upstream.url)),
                "LIKEWISE_MODEL": "ours",
                "LIKEWISE_EMBED_WORKER": "false",
                "LIKEWISE_LOG_LEVEL": "debug",
                **more,
            }
            async with (
                LiveServer(folder, environment, log=log).running() as server,
                httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE) as client,
            ):
                house = House(folder, server, client, upstream, environment, log)
                client.event_hooks = {"response": [house._keep]}
                yield house
    finally:
        shutil.rmtree(folder, ignore_errors=True)
