"""What `likewise doctor` looks at of the cache that processes share."""

import asyncio
from collections.abc import AsyncIterator

from likewise.cli.doctor.finding import Finding
from likewise.embedding.caches.opening import open_redis
from likewise.errors import SettingsError
from likewise.settings import Settings

LOOK_SECONDS = 5.0


async def cache(settings: Settings) -> AsyncIterator[Finding]:
    """Redis, if the settings name one: that it answers, and takes what it is sent."""
    try:
        redis = open_redis(settings)
    except SettingsError as error:
        yield Finding("cache", error.detail, "Mend that, or unset LIKEWISE_REDIS_URL: each process then has its own.")
        return
    if redis is None:
        return
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            reason = await redis.look()
    except TimeoutError:
        reason = "Redis does not answer."
    finally:
        await redis.close()
    if reason is None:
        yield Finding("cache", "Redis answers, and takes vectors")
    else:
        mend = "See that Redis runs and that LIKEWISE_REDIS_URL is right; requests go on without it meanwhile."
        yield Finding("cache", reason, mend)
