"""Two caches as one: this process's memory, and behind it what processes share."""

from collections.abc import Mapping, Sequence

from likewise.embedding.cache import Cache, Cached


class LayeredCache:
    """Asks the near cache first, and the far one only for what is missing; what that knows is near from then on."""

    def __init__(self, near: Cache, far: Cache) -> None:
        self.near = near
        self.far = far

    @property
    def memory_bytes(self) -> int:
        """What both hold in this process's memory."""
        return self.near.memory_bytes + self.far.memory_bytes

    @property
    def fault(self) -> str | None:
        """Why one of them is left out at present."""
        return self.near.fault or self.far.fault

    def start(self) -> None:
        """Begin what they do in the background."""
        self.near.start()
        self.far.start()

    async def get_many(self, keys: Sequence[bytes]) -> list[Cached | None]:
        """What is known of each key, in order."""
        found = await self._fill([None] * len(keys), keys, self.near)
        missing = [place for place, row in enumerate(found) if row is None]
        if not missing:
            return found
        found = await self._fill(found, keys, self.far)
        await self.near.put_many({keys[place]: row for place in missing if (row := found[place]) is not None})
        # Meanwhile another request may have made what the far one did not know.
        return await self._fill(found, keys, self.near)

    async def put_many(self, items: Mapping[bytes, Cached]) -> None:
        """Remember these in both."""
        await self.near.put_many(items)
        await self.far.put_many(items)

    async def delete_many(self, keys: Sequence[bytes], *, at_once: bool = False) -> None:
        """Forget these in both."""
        await self.near.delete_many(keys)
        await self.far.delete_many(keys, at_once=at_once)

    async def clear(self) -> None:
        """Forget what both hold in this process."""
        await self.near.clear()
        await self.far.clear()

    async def close(self) -> None:
        """Close both."""
        await self.near.close()
        await self.far.close()

    async def _fill(self, found: list[Cached | None], keys: Sequence[bytes], tier: Cache) -> list[Cached | None]:
        """What was found, with what a tier knows of the rest."""
        rest = [place for place, row in enumerate(found) if row is None]
        known = dict(zip(rest, await tier.get_many([keys[place] for place in rest]), strict=True))
        return [known.get(place, row) for place, row in enumerate(found)]
