"""Real implementations for tests: a deterministic model, here or remote, a throw-away Postgres, a live server."""

from likewise.testing.postgres import DatabaseUrls, ThrowawayPostgres, open_folder, throwaway_postgres
from likewise.testing.provider import FakeLoader, FakeProvider
from likewise.testing.scripted import Asked, Reply
from likewise.testing.server import LiveServer
from likewise.testing.upstream import Upstream

__all__ = [
    "Asked",
    "DatabaseUrls",
    "FakeLoader",
    "FakeProvider",
    "LiveServer",
    "Reply",
    "ThrowawayPostgres",
    "Upstream",
    "open_folder",
    "throwaway_postgres",
]
