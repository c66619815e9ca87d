"""Jobs: handles to work that outlives its request, what became of its items, and the tasks that workers claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import orjson
from psycopg.sql import SQL

from likewise.db.contents import WAIT_AGAIN
from likewise.db.pool import Pool
from likewise.db.transaction import Tx, table
from likewise.errors import Conflict, NotFound

JobState = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]
# Where a job stands in the list of all: when it was made, and its id.
JobCursor = tuple[datetime, UUID]
# So long a job can be asked for after its end.
RETENTION = timedelta(days=30)
# So long a text that is not kept waits for its vector, and a task's input for its worker.
MAX_SEALED_AGE = timedelta(hours=24)
# Why items came to nothing through no fault of anybody's.
DELETED, REPLACED, CANCELLED = "deleted", "replaced", "cancelled"

ADD = SQL("""
    INSERT INTO jobs (id, tenant, kind, total, generation, result, request_id) VALUES (%s, %s, %s, %s, %s, %s, %s)
""")
ADD_TASK = SQL("""
    INSERT INTO jobs (id, tenant, kind, input, result, request_id, run_after) VALUES (%s, %s, %s, %s, %s, %s, now())
""")
READY = SQL("""
    SELECT v.content, v.tokens, v.truncated, v.chars_read FROM {vectors} v WHERE v.content = ANY (%s::bigint[])
""")
# Whoever writes a vector holds its content against this lock: afterwards either the vector is there or the row is seen.
SHARE = SQL("SELECT pk FROM contents WHERE pk = ANY (%s::bigint[]) ORDER BY pk FOR SHARE")
WAIT_FOR = SQL("""
    INSERT INTO job_contents (tenant, job, item, content)
    SELECT %b, %b, i.item, i.content FROM unnest(%b::text[], %b::bigint[]) AS i (item, content)
""")
COUNT = SQL("SELECT count_in_jobs(%s, %s, %s, %s, NULL, %s)")
FAIL_IN_JOBS = SQL("SELECT fail_in_jobs(%s, %s, %s)")
SETTLE = SQL("""
    WITH over AS (
        DELETE FROM job_contents WHERE content = ANY (%s::bigint[]) AND error IS NULL RETURNING job, content
    )
    SELECT count_in_jobs(array_agg(job), array_agg(n), array_agg(0), array_agg(0), NULL, array_agg(reading))
    FROM (
        SELECT o.job, count(*)::int AS n,
               (array_agg(jsonb_build_object('truncated_len', v.chars_read, 'tokens', v.tokens,
                                             'truncated_tokens', v.truncated)))[1] AS reading
        FROM over o JOIN {vectors} v ON v.content = o.content GROUP BY o.job
    ) counted HAVING count(*) > 0
""")

# A job runs from the first of its items that a worker has.
STATE = SQL("""
    CASE WHEN j.state = 'PENDING' AND (
        j.claim IS NOT NULL OR j.done + j.failed > 0 OR EXISTS (
            SELECT FROM job_contents i JOIN waiting w ON w.generation = j.generation AND w.content = i.content
            WHERE i.job = j.id AND i.error IS NULL AND w.claim IS NOT NULL)
    ) THEN 'RUNNING' ELSE j.state END
""")
COLUMNS = SQL("""
    j.id, j.kind, {state}, j.total, j.done, j.failed, j.result, j.error, j.created_at, j.updated_at
""").format(state=STATE)
ONE = SQL("SELECT {columns} FROM jobs j WHERE j.id = %s").format(columns=COLUMNS)
# Newest first; a page begins after the job that the last one ended with. What a search found stays out of it.
LIST = SQL("""
    SELECT id, kind, state, total, done, failed, result - 'hits', error, created_at, updated_at FROM (
        SELECT {columns} FROM jobs j
        WHERE %(after)s::uuid IS NULL OR (j.created_at, j.id) < (%(at)s::timestamptz, %(after)s::uuid)
    ) AS j (id, kind, state, total, done, failed, result, error, created_at, updated_at)
    WHERE %(state)s::text IS NULL OR state = %(state)s ORDER BY created_at DESC, id DESC LIMIT %(limit)s
""").format(columns=COLUMNS)
FAILURES = SQL("SELECT item, error FROM job_contents WHERE job = %s AND error IS NOT NULL ORDER BY item")
STATES_OF = SQL("SELECT id, state FROM jobs WHERE id = ANY (%s::uuid[])")

ITEMS = SQL("SELECT content FROM job_contents WHERE job = %s AND error IS NULL")
FAILED_ITEMS = SQL("SELECT content FROM job_contents WHERE job = %s AND error IS NOT NULL")
HOLD_CONTENTS = SQL("""
    SELECT pk, state = 'failed', text IS NOT NULL OR sealed IS NOT NULL FROM contents
    WHERE pk = ANY (%s::bigint[]) ORDER BY pk FOR UPDATE
""")
# An input that has left is empty; a task that never had one has none, and can be tried again.
HOLD = SQL("""
    SELECT state, run_after IS NOT NULL, input IS DISTINCT FROM ''::bytea, generation
    FROM jobs WHERE id = %s FOR UPDATE
""")
LEAVE_ITEMS = SQL("UPDATE job_contents SET error = %s WHERE job = %s AND error IS NULL RETURNING content")
CANCEL = SQL("""
    UPDATE jobs SET state = 'CANCELLED', error = 'cancelled', failed = total - done, withdrawn = total - done,
           input = substring(input FROM 1 FOR 0), claim = NULL, updated_at = now(), ended_at = now() WHERE id = %s
""")
# Contents that no job waits for any more.
UNWANTED = SQL("""
    SELECT c FROM unnest(%s::bigint[]) AS c
    WHERE NOT EXISTS (SELECT FROM job_contents i WHERE i.content = c AND i.error IS NULL)
""")
GIVE_UP = SQL("SELECT fail_contents(%s, %s, %s)")
REOPEN = SQL("""
    UPDATE jobs SET state = 'PENDING', error = NULL, failed = 0, withdrawn = 0, updated_at = now(), ended_at = NULL,
           attempts = 0, claim = NULL, done = CASE WHEN run_after IS NULL THEN done ELSE 0 END,
           run_after = CASE WHEN run_after IS NULL THEN NULL ELSE now() END
    WHERE id = %s
""")
REOPEN_ITEMS = SQL("UPDATE job_contents SET error = NULL WHERE job = %s")
REVIVE = SQL("UPDATE contents SET state = 'live', reason = NULL WHERE pk = ANY (%s::bigint[])")

CLAIM_TASK = SQL("SELECT id, tenant, kind, input, attempts, request_id FROM claim_task(%s, %s, %s, %s)")
# Where nothing is known of its progress, that stays as it is.
RENEW_TASK = SQL("""
    UPDATE jobs SET run_after = now() + %s, done = coalesce(%s, done), total = coalesce(%s, total), updated_at = now()
    WHERE id = %s AND claim = %s AND ended_at IS NULL RETURNING id
""")
FINISH_TASK = SQL("""
    UPDATE jobs SET state = %s, result = result || %s::jsonb, error = %s, input = substring(input FROM 1 FOR 0),
           done = CASE WHEN %s THEN total ELSE done END, claim = NULL, updated_at = now(), ended_at = now()
    WHERE id = %s AND claim = %s AND ended_at IS NULL RETURNING id
""")
# It begins anew.
RELEASE_TASK = SQL("""
    UPDATE jobs SET claim = NULL, run_after = now() + %s, attempts = attempts + %s, done = 0, total = 0,
           updated_at = now()
    WHERE id = %s AND claim = %s AND ended_at IS NULL
""")
OPEN_TASKS = SQL("SELECT count(*) FROM jobs WHERE run_after IS NOT NULL AND ended_at IS NULL")
EXPIRE = SQL("SELECT expire_sealed(%s, %s)")
FORGET = SQL("SELECT forget_jobs(%s, %s)")


@dataclass(frozen=True)
class Failure:
    """An item of a job that came to nothing, and why, as a stable code."""

    item: str
    code: str


@dataclass(frozen=True)
class Job:
    """A job as it stands. `result` is whole once it has succeeded; `failures` only where they were asked for."""

    id: UUID
    kind: str
    state: JobState
    total: int
    done: int
    failed: int
    result: Mapping[str, Any]
    error: str | None
    created_at: datetime
    updated_at: datetime
    failures: Sequence[Failure] = field(default=())


@dataclass(frozen=True)
class Task:
    """A job that a worker has claimed. `attempts` counts the tries that failed before."""

    id: UUID
    tenant: int
    kind: str
    input: bytes | None
    attempts: int
    request_id: str | None


class TextGone(Conflict):
    """The text of this job is no longer kept. Send it again."""

    code = "text_gone"


async def start(
    tx: Tx,
    job: UUID,
    kind: str,
    generation: int,
    items: Mapping[str, int],
    *,
    result: Mapping[str, Any],
    request_id: str | None = None,
) -> None:
    """Begin a job on contents; it has succeeded at once if all of them have their vectors.

    To be called in the transaction that stored them, so that neither is there without the other.

    Args:
        generation: whose vectors it waits for.
        items: the content of each item, by the name that its failure is reported under.
        result: what is known of the result from the beginning. Of a job of one item, what the model read is added.
    """
    known = orjson.dumps(dict(result)).decode()
    contents = sorted(set(items.values()))
    await tx.execute(SHARE, [contents])
    _, rows = await tx.together(
        (ADD, [job, tx.tenant, kind, len(items), generation, known, request_id]),
        (READY.format(vectors=table("vec", generation)), [contents]),
    )
    ready = {
        int(content): {"truncated_len": chars_read, "tokens": tokens, "truncated_tokens": truncated}
        for content, tokens, truncated, chars_read in rows
    }
    left = [(item, content) for item, content in items.items() if content not in ready]
    if left:
        names, waited = zip(*left, strict=True)
        await tx.execute(WAIT_FOR, [tx.tenant, job, list(names), list(waited)])
    if len(left) < len(items):
        reading = ready.get(next(iter(items.values()))) if len(items) == 1 else None
        counted = [[job], [len(items) - len(left)], [0], [0], [orjson.dumps(reading).decode()]]
        await tx.execute(COUNT, counted)


async def settle(tx: Tx, generation: int, contents: Sequence[int]) -> None:
    """Tell the jobs that wait for these contents that their vectors are there; their locks are held."""
    await tx.execute(SETTLE.format(vectors=table("vec", generation)), [list(contents)])


async def withdraw(tx: Tx, contents: Sequence[int], why: str) -> None:
    """Tell the jobs that wait for these contents that they are gone; their locks are held."""
    await tx.execute(FAIL_IN_JOBS, [list(contents), why, True])


async def of(tx: Tx, job: UUID) -> Job:
    """Return one job with its failures; NotFound if this tenant has none of this id."""
    row = await tx.row(ONE, [job])
    if row is None:
        raise NotFound("There is no job of this id.", code="job_not_found")
    failures = tuple(Failure(*found) for found in await tx.rows(FAILURES, [job])) if row[5] else ()
    return replace(Job(*row), failures=failures)


async def listed(tx: Tx, *, limit: int, state: JobState | None = None, after: JobCursor | None = None) -> list[Job]:
    """List jobs of this tenant, newest first, without their failures."""
    at, job = after or (None, None)
    return [Job(*row) for row in await tx.rows(LIST, {"at": at, "after": job, "state": state, "limit": limit})]


async def states(tx: Tx, jobs: Sequence[UUID]) -> dict[UUID, str]:
    """Return the states of those jobs that are known; one that runs is PENDING here."""
    return dict(await tx.rows(STATES_OF, [list(jobs)]))


async def cancel(tx: Tx, job: UUID) -> None:
    """End a job: what it alone waits for is given up, and its texts leave if they are not kept.

    Raises:
        NotFound: there is none of this id.
        Conflict: it has ended.
    """
    contents = await tx.column(ITEMS, [job])
    await tx.execute(HOLD_CONTENTS, [contents])
    state, *_ = await _held(tx, job)
    if state != "PENDING":
        raise Conflict("This job has ended already.", code="job_ended")
    left = await tx.column(LEAVE_ITEMS, [CANCELLED, job])
    await tx.execute(CANCEL, [job])
    unwanted = await tx.column(UNWANTED, [left])
    if unwanted:
        await tx.execute(GIVE_UP, [unwanted, CANCELLED, True])


async def retry(tx: Tx, job: UUID) -> None:
    """Have the failed items of a job tried again.

    Raises:
        NotFound: there is none of this id.
        Conflict: nothing of it has failed, or it has not ended.
        TextGone: a text, or its segment, is no longer there.
    """
    failed = sorted(set(await tx.column(FAILED_ITEMS, [job])))
    held = await tx.rows(HOLD_CONTENTS, [failed])
    state, is_task, has_input, generation = await _held(tx, job)
    if state == "PENDING":
        raise Conflict("This job has not ended yet.", code="job_running", retry_after=1)
    if not failed and (not is_task or state == "SUCCEEDED"):
        raise Conflict("Nothing of this job has failed.", code="nothing_failed")
    if (is_task and not has_input) or len(held) < len(failed) or not all(has_text for *_, has_text in held):
        raise TextGone
    await tx.execute(REOPEN, [job])
    if is_task:
        return
    await tx.execute(REOPEN_ITEMS, [job])
    await tx.execute(REVIVE, [[pk for pk, has_failed, _ in held if has_failed]])
    vectors = table("vec", generation)
    # Before what comes in bulk, as somebody has asked for them.
    await tx.execute(WAIT_AGAIN.format(vectors=vectors), [generation, 0, failed, [None] * len(failed)])
    ready = await tx.column(READY.format(vectors=vectors), [failed])
    if ready:
        await settle(tx, generation, ready)


async def add_task(
    tx: Tx, job: UUID, kind: str, *, sealed_input: bytes | None, result: Mapping[str, Any], request_id: str | None
) -> None:
    """Add a task for a worker."""
    await tx.execute(ADD_TASK, [job, tx.tenant, kind, sealed_input, orjson.dumps(dict(result)).decode(), request_id])


async def open_tasks(tx: Tx) -> int:
    """Count the tasks of this tenant that have not ended."""
    return await tx.number(OPEN_TASKS)


async def claim_task(pool: Pool, kinds: Sequence[str], claim: UUID, lease: timedelta, after_tenant: int) -> Task | None:
    """Lease one task of these kinds; None if none is free."""
    row = await pool.row(CLAIM_TASK, list(kinds), claim, lease, after_tenant)
    return None if row is None else Task(*row)


async def renew_task(
    tx: Tx, task: Task, claim: UUID, lease: timedelta, *, progress: tuple[int, int] | None = None
) -> bool:
    """Keep a task for one lease more, and record its progress; False if another has it."""
    done, total = progress or (None, None)
    return await tx.row(RENEW_TASK, [lease, done, total, task.id, claim]) is not None


async def finish_task(
    tx: Tx, task: Task, claim: UUID, *, result: Mapping[str, Any] | None = None, error: str | None = None
) -> bool:
    """End a task, with a result or with the code of an error; False if another has it."""
    state = "SUCCEEDED" if error is None else "FAILED"
    known = orjson.dumps(dict(result or {})).decode()
    return await tx.row(FINISH_TASK, [state, known, error, error is None, task.id, claim]) is not None


async def release_task(tx: Tx, task: Task, claim: UUID, *, after: timedelta, failed: bool) -> None:
    """Give a task back; `failed` counts a try."""
    await tx.execute(RELEASE_TASK, [after, int(failed), task.id, claim])


async def expire(pool: Pool, max_rows: int) -> int:
    """Give up what has waited sealed for too long, at most so many; return the number of them."""
    return await pool.number(EXPIRE, MAX_SEALED_AGE, max_rows)


async def forget_ended(pool: Pool, max_rows: int) -> int:
    """Remove jobs that ended long ago, at most so many; return the number of them."""
    return await pool.number(FORGET, RETENTION, max_rows)


async def _held(tx: Tx, job: UUID) -> tuple[str, bool, bool, int]:
    row = await tx.row(HOLD, [job])
    if row is None:
        raise NotFound("There is no job of this id.", code="job_not_found")
    return row[0], row[1], row[2], row[3]
