"""Requests that carry an Idempotency-Key, each run once and its answer kept."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.sql import SQL

from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.errors import InProgress, Invalid

KEPT = timedelta(hours=24)

# Ours if it is new, or forgotten by now, or if who ran the same request died over it.
TAKE = SQL("""
    INSERT INTO idempotency AS earlier
        (tenant, method, route, key, body_digest, state, claim, lease_until, expires)
    VALUES (%(tenant)s, %(method)s, %(route)s, %(key)s, %(digest)s,
            'running', %(claim)s, now() + %(lease)s, now() + %(kept)s)
    ON CONFLICT (tenant, method, route, key) DO UPDATE
    SET body_digest = excluded.body_digest, state = excluded.state, claim = excluded.claim,
        lease_until = excluded.lease_until, status = NULL, answer = NULL, expires = excluded.expires
    WHERE earlier.expires <= now()
       OR earlier.state = 'running' AND earlier.lease_until <= now() AND earlier.body_digest = excluded.body_digest
    RETURNING claim
""")
FIND = SQL("""
    SELECT body_digest, state, status, answer::text FROM idempotency WHERE method = %s AND route = %s AND key = %s
""")
FINISH = SQL("""
    UPDATE idempotency SET state = 'done', claim = NULL, lease_until = NULL, status = %s, answer = %s::json
    WHERE method = %s AND route = %s AND key = %s AND claim = %s
    RETURNING key
""")
RENEW = SQL("""
    UPDATE idempotency SET lease_until = now() + %s WHERE method = %s AND route = %s AND key = %s AND claim = %s
""")
RELEASE = SQL("DELETE FROM idempotency WHERE method = %s AND route = %s AND key = %s AND claim = %s")
FORGET = SQL("SELECT forget_expired_requests(%s)")

# The row may go between looking and looking again, when a run of the same request fails; not for ever.
LOOKS = 3


@dataclass(frozen=True)
class Attempt:
    """One run of a request. `route` is a template, so no id is kept with it; the digest covers the address."""

    method: str
    route: str
    key: str
    digest: bytes
    claim: UUID

    @property
    def place(self) -> list[Any]:
        """The key of its row, as long as it is this run's."""
        return [self.method, self.route, self.key, self.claim]


@dataclass(frozen=True)
class StoredAnswer:
    """The answer that a request got before, as JSON."""

    status: int
    answer: str


async def begin(pool: Pool, tenant: int, attempt: Attempt, lease: timedelta) -> StoredAnswer | None:
    """Take a request to run it, or return the answer that it got before.

    Args:
        lease: when it has passed without being renewed, the process is taken for dead and others may run the request.

    Raises:
        Invalid: another request came with this key.
        InProgress: somebody runs it now.
    """
    values = {"tenant": tenant, **vars(attempt), "lease": lease, "kept": KEPT}
    for _ in range(LOOKS):
        async with pool.tenant(tenant) as tx:
            if await tx.row(TAKE, values) is not None:
                return None
            row = await tx.row(FIND, [attempt.method, attempt.route, attempt.key])
        if row is not None:
            return _earlier(attempt, *row)
    raise InProgress


async def finish(tx: Tx, attempt: Attempt, status: int, answer: bytes) -> None:
    """Keep the answer; InProgress if another has taken the request over, so that this transaction must not commit."""
    if await tx.row(FINISH, [status, answer.decode(), *attempt.place]) is None:
        raise InProgress


async def renew(pool: Pool, tenant: int, attempt: Attempt, lease: timedelta) -> None:
    """Hold a request that is still running."""
    async with pool.tenant(tenant) as tx:
        await tx.execute(RENEW, [lease, *attempt.place])


async def release(pool: Pool, tenant: int, attempt: Attempt) -> None:
    """Free the key of a run that came to nothing; one that has its answer stays."""
    async with pool.tenant(tenant) as tx:
        await tx.execute(RELEASE, attempt.place)


async def forget_expired(pool: Pool, max_rows: int) -> int:
    """Remove up to `max_rows` rows, of all tenants, whose time is over; return the number of them."""
    return await pool.number(FORGET, max_rows)


def _earlier(attempt: Attempt, digest: bytes, state: str, status: int | None, answer: str | None) -> StoredAnswer:
    if digest != attempt.digest:
        raise Invalid(
            "This Idempotency-Key came with another request before. Use a new one for each request.",
            code="idempotency_key_reused",
        )
    if state != "done" or status is None or answer is None:
        raise InProgress
    return StoredAnswer(status, answer)
