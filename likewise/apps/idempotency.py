"""`Idempotency-Key`: a request that is done once, and answered the same, however often it comes."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Annotated, Any, TypeVar
from uuid import uuid4

from fastapi import Depends, Header, Request, Response
from pydantic.json_schema import SkipJsonSchema

from likewise.apps.answers import Answer
from likewise.apps.body import PARSE_IN_THREAD, hold
from likewise.apps.collections.service import Save
from likewise.apps.declaration import media_type
from likewise.apps.deps import services
from likewise.db import idempotency
from likewise.db.idempotency import Attempt
from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.digests import digest_of
from likewise.errors import Invalid, LikewiseError
from likewise.stopping import stop

T = TypeVar("T")

REPLAYED = "Idempotency-Replayed"
# Within a lease: one may be late, or meet a database that is away for a moment.
RENEWALS = 3

_KEY = re.compile(r"[!-~]{1,255}")


class Idempotency:
    """Runs a request's work, once for its key if it has one."""

    def __init__(self, pool: Pool, lease: timedelta, most_bytes: int, request: Request, key: str | None) -> None:
        self._pool = pool
        self._most_bytes = most_bytes
        self._lease = lease
        self._request = request
        self._key = key

    async def answer(
        self,
        tenant: int,
        work: Callable[[Save | None], Awaitable[T]],
        *,
        status: int | Callable[[T], int] = 200,
        lasting: Callable[[T], bool] = lambda _: True,
    ) -> Response:
        """What `work` returns as JSON, or what it was answered when it was done before.

        Args:
            work: gets a function to call in the transaction that it commits, with what it will return: then both are
                kept or neither. What it does not keep itself is kept after it.
            status: of the answer, or what gives it for a result.
            lasting: whether a result is the answer for good; otherwise the next request with this key is done anew.

        Raises:
            Invalid: another request came with this key.
            InProgress: this one is still running.
        """
        if self._key is None:
            result = await work(None)
            return Answer(result, status_code=_status(status, result))
        attempt = await self._attempt(self._key)
        earlier = await idempotency.begin(self._pool, tenant, attempt, self._lease)
        if earlier is not None:
            return Response(earlier.answer, earlier.status, {REPLAYED: "true"}, Answer.media_type)
        run = _Run(self._pool, tenant, attempt, self._lease, status)
        async with run.held():
            result = await work(run.save)
            if run.answer is None and lasting(result):
                async with self._pool.tenant(tenant) as tx:
                    await run.save(tx, result)
        # Word for word what a repetition will be answered.
        return run.answer or Answer(result, status_code=_status(status, result))

    async def _attempt(self, key: str) -> Attempt:
        request = self._request
        # Read whole, here at the latest: what the request is can only be told from all of it.
        body = await hold(request, self._most_bytes)
        path = request.scope["path"].encode(errors="surrogateescape")
        parts = (path, request.scope["query_string"], media_type(request.headers).encode(), body)
        digest = digest_of(parts) if len(body) < PARSE_IN_THREAD else await asyncio.to_thread(digest_of, parts)
        return Attempt(request.method, request.scope["route"].path, key, digest, uuid4())


class _Run:
    """One run of a request, and its answer once that is kept."""

    def __init__(
        self, pool: Pool, tenant: int, attempt: Attempt, lease: timedelta, status: int | Callable[[Any], int]
    ) -> None:
        self._pool = pool
        self._tenant = tenant
        self._attempt = attempt
        self._lease = lease
        self._status = status
        self.answer: Response | None = None

    async def save(self, tx: Tx, result: Any) -> None:
        """Keep the answer in a transaction; again, if that is tried again."""
        status = _status(self._status, result)
        answer = Answer(result, status_code=status)
        await idempotency.finish(tx, self._attempt, status, bytes(answer.body))
        self.answer = answer

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


def _status(status: int | Callable[[Any], int], result: Any) -> int:
    return status(result) if callable(status) else status


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
