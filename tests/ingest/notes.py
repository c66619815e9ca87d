"""The collection `notes` of the only tenant, made before anything is stored in it."""

from likewise.apps.collections.service import KIND
from likewise.db import collections
from likewise.db.collections import CollectionRow
from likewise.kind import Policy
from likewise.library import Likewise
from likewise.search.analyzer import ANALYZER


async def made(lw: Likewise, policy: Policy = KIND.policy) -> CollectionRow:
    """It, with a policy of its own."""
    tenant, model = await lw.tenant(), await lw.embedder.opened()
    async with lw.runtime.pool.tenant(tenant) as tx:
        return await collections.make(
            tx, "notes", kind=KIND.name, analyzer=ANALYZER, policy=policy,
            model=model.spec.name, dimension=model.dimension, text_keys=lw.runtime.text_keys,
        )  # fmt: skip
