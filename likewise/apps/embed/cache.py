"""A cache of vectors by text and model, under the names of the embedder that this one replaces."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from likewise.embedding.cache import Cache, Cached, cache_key
from likewise.embedding.caches.opening import open_cache
from likewise.embedding.provider import Vector
from likewise.errors import Invalid, SettingsError
from likewise.settings import Settings, load_settings

# These vectors are whoever's who sets them, and never taken for one that a model of ours made.
_SPACE, _NUMERICS = "by name", "as given"


class EmbeddingCache:
    """Remembers vectors in this process, and in Redis if there is one; what fails is not known.

    Args:
        redis_client: of the `redis` package; LIKEWISE_REDIS_URL if absent.
        ttl: how many seconds Redis keeps a vector; LIKEWISE_CACHE_SECONDS if absent.
        settings: read from the environment if absent.
    """

    def __init__(self, redis_client: Any = None, ttl: int | None = None, *, settings: Settings | None = None) -> None:
        if ttl is not None and (type(ttl) is not int or ttl < 0):
            raise SettingsError("ttl is a whole number of seconds; 0 is without limit.")
        changes: dict[str, Any] = {} if ttl is None else {"cache_seconds": ttl}
        if redis_client is not None:
            changes["redis_url"] = url_of(redis_client)
        self._cache: Cache = open_cache((settings or load_settings()).model_copy(update=changes))

    async def get(self, text: str, model: str) -> list[float] | None:
        """Return the vector of a text by a model; None if it is not known."""
        return (await self.get_batch([text], model))[0]

    async def set(self, text: str, model: str, embedding: Sequence[float]) -> None:
        """Remember the vector of a text."""
        await self.set_batch({text: embedding}, model)

    async def get_batch(self, texts: Sequence[str], model: str) -> list[list[float] | None]:
        """Return the vectors of texts by a model, in their order, None where it is not known."""
        found = await self._cache.get_many([_key(text, model) for text in texts])
        return [None if one is None else one.vector.tolist() for one in found]

    async def set_batch(self, embeddings: Mapping[str, Sequence[float]], model: str) -> None:
        """Remember vectors by their texts; Invalid, and nothing is kept, if one has a number that is not finite."""
        vectors = {text: _checked(vector) for text, vector in embeddings.items()}
        await self._cache.put_many(
            {_key(text, model): Cached(vector, 0, 0, len(text)) for text, vector in vectors.items()}
        )

    async def close(self) -> None:
        """Write what waits to be written, and let the connections go."""
        await self._cache.close()


def _checked(numbers: Sequence[float]) -> Vector:
    try:
        vector = np.asarray(numbers, np.float32)
    except (ValueError, TypeError):
        vector = np.empty(0, np.float32)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise Invalid.at("/embeddings", "A vector is a list of finite numbers.")
    return vector


def url_of(redis_client: Any) -> str:
    """Return the URL that a client of the `redis` package was made for; SettingsError where none says as much."""
    pool = getattr(redis_client, "connection_pool", None)
    options = getattr(pool, "connection_kwargs", {})
    if pool is None or type(pool).__name__.startswith("Sentinel") or options.get("credential_provider"):
        raise SettingsError(
            "redis_client must be of one Redis, with a password and no other credentials. Set LIKEWISE_REDIS_URL for a "
            "cluster."
        )
    user, password = options.get("username") or "", options.get("password") or ""
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    database = options.get("db") or 0
    if "path" in options:
        return f"unix://{login}{quote(options['path'])}?{urlencode({'db': database})}"
    scheme = "rediss" if "SSL" in pool.connection_class.__name__ else "redis"
    host = options.get("host") or "localhost"
    address = f"{f'[{host}]' if ':' in host else host}:{options.get('port', 6379)}"
    secured = {name: value for name, value in options.items() if name.startswith("ssl_") and isinstance(value, str)}
    return f"{scheme}://{login}{address}/{database}" + (f"?{urlencode(secured)}" if secured else "")


def _key(text: str, model: str) -> bytes:
    return cache_key(None, f"{_SPACE} {model}", _NUMERICS, "document", 0, text)
