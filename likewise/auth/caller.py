"""The caller of a request: a tenant, and what may be done there."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """A right of a credential. None includes another, so that a sender may be given writing without reading."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True)
class Caller:
    """The tenant that a request acts for, its scopes, and the prefix of its API key if it came with one."""

    tenant: int
    scopes: frozenset[Scope]
    key: str | None = None
