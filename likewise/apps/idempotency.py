"""`Idempotency-Key`: a request that is done once, and answered the same, however often it comes."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, Header, Request, Response
from pydantic.json_schema import SkipJsonSchema

from likewise.apps.answers import Answer
from likewise.apps.body import PARSE_IN_THREAD, hold
from likewise.apps.declaration import media_type
from likewise.apps.deps import runtime_of
from likewise.db import idempotency
from likewise.db.idempotency import Attempt
from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.digests import digest_of
from likewise.errors import Invalid, LikewiseError
from likewise.ingest.unit_of_work import AnswerStore
from likewise.runtime import Runtime
from likewise.stopping import stop

REPLAYED = "Idempotency-Replayed"
# Within a lease: one may be late, or meet a database that is away for a moment.
RENEWALS = 3

_KEY = re.compile(r"[!-~]{1,255}")


class Idempotency:
    """A request that is done once for its key, if it has one."""

    def __init__(self, runtime: Runtime, request: Request, key: str | None) -> None:
        self._pool = runtime.pool
        self._max_bytes = runtime.settings.max_body_bytes
        self._lease = timedelta(seconds=runtime.settings.lease_seconds)
        self._request = request
        self._key = key

    @asynccontextmanager
    async def begin(self, tenant: int, status: int = 200, *, ended: int | None = None) -> AsyncIterator["Reply"]:
        """Hold the request for the block, which returns its `earlier` answer, or does the work and gives the result.

        Args:
            status: of the answer.
            ended: of one about a job that has nothing left to do.

        Raises:
            Invalid: another request came with this key.
            InProgress: this one is still running.
        """
        if self._key is None:
            yield Reply(status, ended)
            return
        attempt = await self._attempt(self._key)
        earlier = await idempotency.begin(self._pool, tenant, attempt, self._lease)
        if earlier is not None:
            replayed = Response(earlier.answer, earlier.status, {REPLAYED: "true"}, Answer.media_type)
            yield Reply(status, ended, replayed)
            return
        run = Run(status, ended, self._pool, tenant, attempt, self._lease)
        async with run.held():
            yield run

    async def _attempt(self, key: str) -> Attempt:
        request = self._request
        # Read whole, here at the latest: what the request is can only be told from all of it.
        body = await hold(request, self._max_bytes)
        path = request.scope["path"].encode(errors="surrogateescape")
        parts = (path, request.scope["query_string"], media_type(request.headers).encode(), body)
        digest = digest_of(parts) if len(body) < PARSE_IN_THREAD else await asyncio.to_thread(digest_of, parts)
        return Attempt(request.method, request.scope["route"].path, key, digest, uuid4())


class Reply:
    """The answer to a request: the one that it had `earlier`, or else what `give` makes of the result of its work.

    `answers` keep a result with what was done, where the request has a key.
    """

    def __init__(self, status: int, ended: int | None, earlier: Response | None = None) -> None:
        self.answers: AnswerStore | None = None
        self.earlier = earlier
        self._status = status
        self._ended = ended or status

    async def give(self, result: Any, *, lasting: bool = True) -> Response:
        """Return the answer of a result, which is kept now if what was done has not kept it with itself.

        Args:
            lasting: whether it is the answer for good; otherwise the next request with this key is done anew.
        """
        return self._answer(result)

    def _answer(self, result: Any) -> Answer:
        ended = getattr(result, "status", None) == "SUCCEEDED"
        return Answer(result, self._ended if ended else self._status)


class Run(Reply):
    """One run of a request that has a key; its answer is kept."""

    def __init__(
        self, status: int, ended: int | None, pool: Pool, tenant: int, attempt: Attempt, lease: timedelta
    ) -> None:
        super().__init__(status, ended)
        self.answers = self
        self._pool = pool
        self._tenant = tenant
        self._attempt = attempt
        self._lease = lease
        self._kept: Response | None = None

    async def give(self, result: Any, *, lasting: bool = True) -> Response:
        """Return the answer, word for word what a repetition will be answered."""
        if self._kept is None and lasting:
            async with self._pool.tenant(self._tenant) as tx:
                await self.save(tx, result)
        return self._kept or self._answer(result)

    async def save(self, tx: Tx, answer: Any) -> None:
        """Keep the answer in a transaction; again, if that is tried again."""
        response = self._answer(answer)
        await idempotency.finish(tx, self._attempt, response.status_code, bytes(response.body))
        self._kept = response

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the request while the block runs; without an answer that is kept, its key is free again after it."""
        renewing = asyncio.create_task(self._renew())
        kept = False
        try:
            yield
            kept = self._kept is not None
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
    return Idempotency(runtime_of(request), request, key)


Once = Annotated[Idempotency, Depends(once)]
