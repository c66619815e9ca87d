"""Workers that work when a test says so, beside a Likewise that has none."""

from typing import Any

from likewise.ingest.worker import Worker
from likewise.library import Likewise
from likewise.sealing import Sealing
from likewise.vectors.store import VectorStore


def worker_of(
    lw: Likewise,
    *,
    store: VectorStore | None = None,
    sealing: Sealing | None = None,
    **options: Any,
) -> Worker:
    """A worker on the parts of a Likewise; `options` are the Worker's own."""
    runtime = lw.runtime
    return Worker(
        runtime.pool,
        runtime.embedder,
        runtime.admission,
        store or runtime.store,
        runtime.wake_signal,
        sealing or runtime.sealing,
        **options,
    )
