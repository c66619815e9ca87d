"""Who calls: a tenant, and what the caller may do there."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a credential allows. None includes another, so that a sender may be given writing without reading."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True)
class Caller:
    """The tenant that a request acts for, what it may do, and the prefix of its key if it came with one."""

    tenant: int
    scopes: frozenset[Scope]
    key: str | None = None
