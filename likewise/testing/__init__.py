"""Real implementations for tests: a model, here or remote, an issuer of tokens, a throw-away Postgres, a server."""

from likewise.testing.postgres import DatabaseUrls, ThrowawayPostgres, open_folder, throwaway_postgres
from likewise.testing.provider import FakeLoader, FakeProvider, Upstream
from likewise.testing.scripted import ReceivedRequest, ScriptedReply
from likewise.testing.server import LiveServer, LiveWorker
from likewise.testing.tokens import FakeIssuer, Signer

__all__ = [
    "DatabaseUrls",
    "FakeIssuer",
    "FakeLoader",
    "FakeProvider",
    "LiveServer",
    "LiveWorker",
    "ReceivedRequest",
    "ScriptedReply",
    "Signer",
    "ThrowawayPostgres",
    "Upstream",
    "open_folder",
    "throwaway_postgres",
]
