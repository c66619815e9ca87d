"""Check the services beside the database: the Redis that processes share, and the issuer of tokens."""

import asyncio
from collections.abc import AsyncIterator

from likewise.auth.issuer import FetchFailed, KeysAddress
from likewise.auth.verification_keys import published_keys
from likewise.cli.doctor.finding import Finding
from likewise.cli.terminal import counted
from likewise.embedding.caches.opening import open_redis
from likewise.errors import SettingsError
from likewise.settings import Settings

REDIS_SECONDS = 5.0
JWKS_MEND = "See that LIKEWISE_JWKS_URL is the `jwks_uri` of the issuer, and that this machine reaches it."


async def cache(settings: Settings) -> AsyncIterator[Finding]:
    """Check that Redis answers and takes what it is sent, if the settings name one."""
    try:
        redis = open_redis(settings)
    except SettingsError as error:
        yield Finding("cache", error.detail, "Fix that, or unset LIKEWISE_REDIS_URL: each process then has its own.")
        return
    if redis is None:
        return
    try:
        async with asyncio.timeout(REDIS_SECONDS):
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


async def issuer(settings: Settings) -> AsyncIterator[Finding]:
    """Check that the issuer publishes keys which can be used, if the settings name `jwks`."""
    if "jwks" not in settings.auth or settings.jwks_url is None:
        return
    address = KeysAddress(settings.jwks_url)
    try:
        usable = published_keys(await address.fetch()).usable
    except FetchFailed as failed:
        yield Finding("issuer", f"It {failed}.", JWKS_MEND)
    except ValueError:
        yield Finding("issuer", "It answers with what is no set of keys.", JWKS_MEND)
    else:
        mend = (
            None if usable else "See that the issuer signs with RS256 or ES256: a shared secret is no key to publish."
        )
        yield Finding("issuer", f"It publishes {counted(usable, 'key')} for signatures", mend)
    finally:
        await address.close()
