"""`Idempotency-Key`: a request that is done once, and answered the same, however often it comes."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, Header, Request, Response
from pydantic.json_schema import SkipJsonSchema

from likewise.apps.answers import Answer
from likewise.apps.body import PARSE_IN_THREAD, hold
from likewise.apps.declaration import media_type
from likewise.apps.deps import services
from likewise.db import idempotency
from likewise.db.idempotency import Attempt
from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.digests import digest_of
from likewise.errors import Invalid, LikewiseError
from likewise.stopping import stop

REPLAYED = "Idempotency-Replayed"
# Within a lease: one may be late, or meet a database that is away for a moment.
RENEWALS = 3

_KEY = re.compile(r"[!-~]{1,255}")


class Idempotency:
    """A request that is done once for its key, if it has one."""

    def __init__(self, pool: Pool, lease: timedelta, max_bytes: int, request: Request, key: str | None) -> None:
        self._pool = pool
        self._max_bytes = max_bytes
        self._lease = lease
        self._request = request
        self._key = key

    @asynccontextmanager
    async def begin(self, tenant: int, status: int = 200, *, ended: int | None = None) -> AsyncIterator["Reply"]:
        """Hold the request for the block, which does its work if `reply.is_new` and gives the result.

        Args:
            status: of the answer.
            ended: of one about a job that has nothing left to do.

        Raises:
            Invalid: another request came with this key.
            InProgress: this one is still running.
        """
        statuses = Statuses(status, ended or status)
        if self._key is None:
            yield Reply(statuses)
            return
        attempt = await self._attempt(self._key)
        earlier = await idempotency.begin(self._pool, tenant, attempt, self._lease)
        if earlier is not None:
            replayed = Response(earlier.answer, earlier.status, {REPLAYED: "true"}, Answer.media_type)
            yield Reply(statuses, replayed=replayed)
            return
        run = Run(self._pool, tenant, attempt, self._lease, statuses)
        async with run.held():
            yield Reply(statuses, run)

    async def _attempt(self, key: str) -> Attempt:
        request = self._request
        # Read whole, here at the latest: what the request is can only be told from all of it.
        body = await hold(request, self._max_bytes)
        path = request.scope["path"].encode(errors="surrogateescape")
        parts = (path, request.scope["query_string"], media_type(request.headers).encode(), body)
        digest = digest_of(parts) if len(body) < PARSE_IN_THREAD else await asyncio.to_thread(digest_of, parts)
        return Attempt(request.method, request.scope["route"].path, key, digest, uuid4())


class Reply:
    """The answer to a request: the one that it had before, or the result of its work now."""

    def __init__(self, statuses: "Statuses", run: "Run | None" = None, replayed: Response | None = None) -> None:
        self.is_new = replayed is None
        self.answers = run
        self._statuses = statuses
        self._response = replayed

    async def give(self, result: Any, *, lasting: bool = True) -> None:
        """Answer with a result, which is kept now if what was done has not kept it with itself.

        Args:
            lasting: whether it is the answer for good; otherwise the next request with this key is done anew.
        """
        if self.answers is not None and self.answers.answer is None and lasting:
            await self.answers.save_now(result)
        # Word for word what a repetition will be answered.
        kept = self.answers.answer if self.answers is not None else None
        self._response = kept or Answer(result, status_code=self._statuses.of(result))

    @property
    def response(self) -> Response:
        """The answer, once there is one."""
        assert self._response is not None, "nothing has been done"
        return self._response


class Run:
    """One run of a request that has a key, and its answer once that is kept."""

    def __init__(self, pool: Pool, tenant: int, attempt: Attempt, lease: timedelta, statuses: "Statuses") -> None:
        self._pool = pool
        self._tenant = tenant
        self._attempt = attempt
        self._lease = lease
        self._statuses = statuses
        self.answer: Response | None = None

    async def save(self, tx: Tx, result: Any) -> None:
        """Keep the answer in a transaction; again, if that is tried again."""
        status = self._statuses.of(result)
        answer = Answer(result, status_code=status)
        await idempotency.finish(tx, self._attempt, status, bytes(answer.body))
        self.answer = answer

    async def save_now(self, result: Any) -> None:
        """Keep the answer in a transaction of its own."""
        async with self._pool.tenant(self._tenant) as tx:
            await self.save(tx, result)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the request while the block runs; without an answer that is kept, its key is free again after it."""
        renewing = asyncio.create_task(self._renew())
        kept = False
        try:
            yield
            kept = self.answer is not None
        finally:
            await stop([renewing])
            if not kept:
                await asyncio.shield(self._release())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / RENEWALS)
            with suppress(LikewiseError):
                await idempotency.renew(self._pool, self._tenant, self._attempt, self._lease)

    async def _release(self) -> None:
        # An answer that was kept all the same, by a commit that nobody heard of, stays. A key that cannot be freed now
        # is free when its lease has run out.
        with suppress(LikewiseError):
            await idempotency.release(self._pool, self._tenant, self._attempt)


@dataclass(frozen=True)
class Statuses:
    """The status of an answer, and that of one about a job that has ended well."""

    usual: int
    ended: int

    def of(self, result: Any) -> int:
        """Return the status for a result."""
        return self.ended if getattr(result, "status", None) == "SUCCEEDED" else self.usual


async def once(
    request: Request,
    key: Annotated[
        str | SkipJsonSchema[None],
        Header(
            alias="Idempotency-Key",
            json_schema_extra={"pattern": f"^{_KEY.pattern}$"},
            description="1 to 255 visible ASCII characters, new for each request. Repeated within 24 hours, it is not "
            "done again but answered as it was, with the header `Idempotency-Replayed`.",
        ),
    ] = None,
) -> Idempotency:
    """The request's key, checked before its body is read."""
    if key is not None and (len(request.headers.getlist("idempotency-key")) > 1 or not _KEY.fullmatch(key)):
        raise Invalid.at("/Idempotency-Key", "One Idempotency-Key of 1 to 255 visible ASCII characters is taken.")
    runtime = services(request).runtime
    lease = timedelta(seconds=runtime.settings.lease_seconds)
    return Idempotency(runtime.pool, lease, runtime.settings.max_body_bytes, request, key)


Once = Annotated[Idempotency, Depends(once)]
