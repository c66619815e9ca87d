"""Keys for tests, made as `likewise keys create` makes them."""

from likewise.auth.api_keys import digest_of, new_key
from likewise.auth.caller import Scope
from likewise.db import keys
from likewise.db.pool import Pool
from likewise.settings import Settings


async def make_key(settings: Settings, tenant: str, *scopes: Scope, days: int | None = None) -> str:
    """A key of a tenant, as its holder shows it."""
    assert settings.database_url is not None
    key = new_key()
    owner = await Pool(settings.database_url, max_size=1).open()
    try:
        digest = digest_of(key.token)
        await keys.make(owner, tenant, prefix=key.prefix, digest=digest, scopes=frozenset(scopes), days=days)
    finally:
        await owner.close()
    return key.token
