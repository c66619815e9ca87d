"""Health: what is wrong with each part of an open Likewise."""

import asyncio
import time
from dataclasses import dataclass, replace

from likewise.db import migrate, waiting
from likewise.embedding.loading import ModelState
from likewise.errors import LikewiseError, StartError
from likewise.runtime import Runtime

# The database has answered already; what is waited for here is a connection of ours that is free.
ASK_SECONDS = 1.0
HEALTH_SECONDS = 1.0


@dataclass(frozen=True)
class Health:
    """The faults of the parts, None of one that works. `oldest_waiting` is in seconds.

    `model_public_detail` is the model's fault for callers over the network, where it is another, and so is that of the
    reranker, which has none where the settings name none.
    """

    database: str | None
    schema: str | None
    model: str | None
    oldest_waiting: float
    cache: str | None = None
    model_public_detail: str | None = None
    issuer: str | None = None
    reranker: str | None = None
    reranker_public_detail: str | None = None


class HealthReader:
    """Reads the health of a runtime: any number of probes cost the database no more than one a second."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._reading = asyncio.Lock()
        self._database: Health | None = None
        self._again_at = 0.0

    async def read(self) -> Health:
        """Return what is wrong with each part; the database as of a second ago at most."""
        async with self._reading:
            if self._database is None or time.monotonic() >= self._again_at:
                self._database = await self._ask_database()
                self._again_at = time.monotonic() + HEALTH_SECONDS
            read = self._database
        # An answer is believed, whatever is said of the server; what a write met is not seen by asking.
        fault = (read.database and self._runtime.server_away) or read.database or self._runtime.pool.storage_fault
        model, model_public_detail = self._model_fault()
        reranker, reranker_public_detail = self._reranker_fault()
        return replace(
            read,
            database=fault,
            model=model,
            model_public_detail=model_public_detail,
            cache=self._runtime.embedder.cache_fault,
            issuer=self._runtime.authentication.issuer_fault,
            reranker=reranker,
            reranker_public_detail=reranker_public_detail,
        )

    async def _ask_database(self) -> Health:
        try:
            await migrate.check(self._runtime.database.serving_url)
            return Health(None, None, None, await self._oldest_waiting())
        except StartError as error:
            return Health(None, error.detail, None, 0.0)
        except LikewiseError as error:
            return Health(error.detail, None, None, 0.0)

    async def _oldest_waiting(self) -> float:
        """In seconds; 0 while every connection is busy, which is no fault."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return max((await waiting.models(self._runtime.pool)).values(), default=0.0)
        except TimeoutError:
            return 0.0
        except LikewiseError as error:
            if error.code != "database_busy":
                raise
            return 0.0

    def _model_fault(self) -> tuple[str | None, str | None]:
        state = self._runtime.embedder.states()[0]
        if state.state == "ready":
            refused = self._runtime.admission.refused
            return next(iter(refused.values()), None), None
        return _fault_of("model", state)

    def _reranker_fault(self) -> tuple[str | None, str | None]:
        states = self._runtime.reranking.states() if self._runtime.settings.reranker else []
        return _fault_of("reranker", states[0]) if states and states[0].state != "ready" else (None, None)


def _fault_of(part: str, state: ModelState) -> tuple[str, str | None]:
    """The fault of a model that is not ready, and the one that callers over the network may read, where it differs."""
    what = f"The {part} {state.name} is {state.state}."
    return f"{what} {state.reason or ''}".strip(), state.public_detail and f"{what} {state.public_detail}"
