"""The work queue: contents without a vector in a generation. Claimed, finished, released or failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from psycopg.sql import SQL

from likewise.db.pool import Pool
from likewise.db.transaction import Tx

# A text that failed by itself waits so long for its next try: 1, 4, 16 and from then on 60 seconds.
FIRST_PAUSE, MAX_PAUSE = 1.0, 60.0
PAUSE = SQL("make_interval(secs => least(%s, %s * 4.0 ^ (attempts - CASE WHEN alone THEN 1 ELSE 0 END)))")

CLAIM = SQL("SELECT tenant, generation, content, request_id FROM claim_entries(%s, %s, %s, %s, %s, %s, %s)")
SWEEP = SQL("SELECT sweep_waiting(%s)")
GIVE_BACK = SQL("SELECT give_back_waiting(%s)")
TOKENS = SQL("SELECT tenant, model, tokens FROM waiting_tokens()")
MODELS = SQL("SELECT model, oldest FROM waiting_models()")
CLAIM_THESE = SQL("""
    UPDATE waiting w SET claim = %s, run_after = now() + %s
    FROM (SELECT generation, content FROM waiting
          WHERE generation = %s AND content = ANY (%s::bigint[]) AND NOT alone AND claim IS NULL
          ORDER BY content FOR UPDATE SKIP LOCKED) free
    WHERE w.generation = free.generation AND w.content = free.content RETURNING w.content
""")
STILL = SQL("SELECT content FROM waiting WHERE generation = %s AND content = ANY (%s::bigint[])")
TEXTS = SQL("SELECT pk, text, sealed, text_hash, collection FROM contents WHERE pk = ANY (%s::bigint[])")
RENEW = SQL("""
    UPDATE waiting w SET run_after = now() + %s
    FROM (SELECT generation, content FROM waiting WHERE claim = %s AND tenant = %s FOR UPDATE SKIP LOCKED) ours
    WHERE w.generation = ours.generation AND w.content = ours.content
""")
# Against deletion, and in the same order: contents before waiting.
HOLD = SQL("SELECT pk FROM contents WHERE pk = ANY (%s::bigint[]) ORDER BY pk FOR NO KEY UPDATE")
TAKE = SQL("""
    DELETE FROM waiting WHERE generation = %s AND content = ANY (%s::bigint[]) AND claim = %s RETURNING content
""")
# What has no text any more can never be done.
DROP_TEXTLESS = SQL("""
    DELETE FROM waiting WHERE generation = %s AND claim = %s AND content IN (
        SELECT pk FROM contents WHERE pk = ANY (%s::bigint[]) AND text IS NULL AND sealed IS NULL)
""")
# A text that is not kept leaves when the last generation has its vector.
LET_GO = SQL("""
    UPDATE contents c SET sealed = NULL
    WHERE c.pk = ANY (%s::bigint[]) AND c.sealed IS NOT NULL AND NOT EXISTS (
        SELECT FROM generations g JOIN waiting w ON w.generation = g.id AND w.content = c.pk
        WHERE g.collection = c.collection)
""")
RELEASE = SQL("""
    UPDATE waiting SET claim = NULL, run_after = now() + %s,
           attempts = greatest(0, attempts - CASE WHEN alone THEN 1 ELSE 0 END)
    WHERE generation = %s AND content = ANY (%s::bigint[]) AND claim = %s
""")
SET_ASIDE = SQL("""
    UPDATE waiting SET claim = NULL, alone = true, error = %s, run_after = now() + {pause},
           attempts = attempts + CASE WHEN alone THEN 0 ELSE 1 END
    WHERE generation = %s AND content = ANY (%s::bigint[]) AND claim = %s
""").format(pause=PAUSE)
FAIL = SQL("""
    SELECT fail_contents(array_agg(content), min(error), false) FROM waiting
    WHERE generation = %s AND content = ANY (%s::bigint[]) AND claim IS NULL AND attempts >= %s
    HAVING count(*) > 0
""")
COUNT = SQL("SELECT count(*) FROM waiting WHERE generation = %s")


@dataclass(frozen=True)
class QueueEntry:
    """One claimed entry of the queue."""

    tenant: int
    generation: int
    content: int
    request_id: str | None


async def claim(
    pool: Pool,
    models: Sequence[str],
    claim_id: UUID,
    *,
    lease: timedelta,
    max_entries: int,
    after_tenant: int,
    alone: bool,
    resting: Sequence[int] = (),
) -> list[QueueEntry]:
    """Lease up to `max_entries` free entries, tenants in turn; with `alone` one that must be tried by itself.

    Args:
        resting: generations that are to be left alone for now.
    """
    rows = await pool.rows(CLAIM, list(models), claim_id, lease, max_entries, after_tenant, alone, list(resting))
    return [QueueEntry(*row) for row in rows]


async def claim_these(tx: Tx, generation: int, contents: Sequence[int], claim_id: UUID, lease: timedelta) -> list[int]:
    """Lease just these contents, as far as they are free."""
    return await tx.column(CLAIM_THESE, [claim_id, lease, generation, list(contents)])


async def still_waiting(tx: Tx, generation: int, contents: Sequence[int]) -> list[int]:
    """Return those of the contents that have no vector yet, and are not failed."""
    return await tx.column(STILL, [generation, list(contents)])


async def sweep(pool: Pool, tries: int) -> int:
    """Set entries aside whose worker died, those that died alone so often for good; return the number of them."""
    return await pool.number(SWEEP, tries)


async def give_back(pool: Pool, claims: Sequence[UUID]) -> int:
    """Give back at once what is held under these claims; return the number that a transaction cut off still holds."""
    return await pool.number(GIVE_BACK, list(claims))


async def models(pool: Pool) -> dict[str, float]:
    """Return the models that anything waits for, and the seconds that the oldest entry of each has waited."""
    return {str(model): float(oldest) for model, oldest in await pool.rows(MODELS)}


async def tokens(pool: Pool) -> dict[str, dict[int, int]]:
    """Count the tokens that wait for each model, by tenant; an estimate that reads the whole queue."""
    found: dict[str, dict[int, int]] = {}
    for tenant, model, count in await pool.rows(TOKENS):
        found.setdefault(str(model), {})[int(tenant)] = int(count)
    return found


@dataclass(frozen=True)
class WaitingText:
    """A content's text as it waits: kept, or sealed; neither where it has left already."""

    content: int
    text: str | None
    sealed: bytes | None
    text_hash: bytes
    collection: int


async def texts(tx: Tx, contents: Sequence[int]) -> list[WaitingText]:
    """Return the texts of those contents that are still there."""
    return [WaitingText(*row) for row in await tx.rows(TEXTS, [list(contents)])]


async def renew(tx: Tx, claim_id: UUID, lease: timedelta) -> None:
    """Keep a claim for one lease more, and commit: who is stopped before that would keep the rows locked."""
    await tx.execute(RENEW, [lease, claim_id, tx.tenant], commit=True)


async def take(tx: Tx, generation: int, contents: Sequence[int], claim_id: UUID) -> list[int]:
    """Take entries out of the queue that are still ours; only for these may a vector be written."""
    await tx.execute(HOLD, [list(contents)])
    return sorted(await tx.column(TAKE, [generation, list(contents), claim_id]))


async def drop_textless(tx: Tx, generation: int, contents: Sequence[int], claim_id: UUID) -> None:
    """Take entries out of the queue whose texts have left already."""
    await tx.execute(HOLD, [list(contents)])
    await tx.execute(DROP_TEXTLESS, [generation, claim_id, list(contents)])


async def let_go(tx: Tx, contents: Sequence[int]) -> None:
    """Forget the sealed texts of contents that wait no longer; the caller has taken them."""
    await tx.execute(LET_GO, [list(contents)])


async def release(tx: Tx, generation: int, contents: Sequence[int], claim_id: UUID, *, after: timedelta) -> None:
    """Give entries back that failed through no fault of their texts; no attempt is counted."""
    await tx.execute(RELEASE, [after, generation, list(contents), claim_id])


async def set_aside(
    tx: Tx, generation: int, contents: Sequence[int], claim_id: UUID, *, error: str, tries: int
) -> None:
    """Count a failed attempt of texts that failed by themselves; they are tried alone from now on.

    Those that have failed so many `tries` are given up.
    """
    await tx.execute(HOLD, [list(contents)])
    await tx.execute(SET_ASIDE, [error, MAX_PAUSE, FIRST_PAUSE, generation, list(contents), claim_id])
    await tx.execute(FAIL, [generation, list(contents), tries])


async def count(tx: Tx, generation: int) -> int:
    """Count the contents that wait in a generation."""
    return await tx.number(COUNT, [generation])
