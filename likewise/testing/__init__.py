"""Real implementations for tests: a deterministic model, a throw-away Postgres, a server in a process of its own."""

from likewise.testing.postgres import DatabaseUrls, ThrowawayPostgres, open_folder, throwaway_postgres
from likewise.testing.provider import FakeLoader, FakeProvider
from likewise.testing.server import LiveServer

__all__ = [
    "DatabaseUrls",
    "FakeLoader",
    "FakeProvider",
    "LiveServer",
    "ThrowawayPostgres",
    "open_folder",
    "throwaway_postgres",
]
