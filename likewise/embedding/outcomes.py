"""What became of texts that went to a model."""

import asyncio
from collections.abc import Mapping, Sequence

from likewise.embedding.cache import Cached
from likewise.embedding.queue import Waiting
from likewise.errors import Fault, Internal, Invalid, LikewiseError, ModelUnavailable


async def outcomes(items: Mapping[bytes, Waiting]) -> dict[bytes, Cached | LikewiseError]:
    """What became of each text, once all are settled."""
    if items:
        await asyncio.wait([item.future for item in items.values()])
    return {key: _outcome(item.future) for key, item in items.items()}


def _outcome(future: asyncio.Future[Cached]) -> Cached | LikewiseError:
    error = future.exception()
    if error is None:
        return future.result()
    return error if isinstance(error, LikewiseError) else Internal()


def all_or_faults(keys: Sequence[bytes], made: Mapping[bytes, Cached | LikewiseError]) -> dict[bytes, Cached]:
    """All rows, by key.

    ModelUnavailable with what kept the model from its work; Invalid (code `text_failed`) with a fault at each place of
    `keys` whose text it could not embed.
    """
    errors = {key: row for key, row in made.items() if isinstance(row, LikewiseError)}
    for error in errors.values():
        if error.code != "text_failed":
            raise ModelUnavailable.because(error, error.retry_after or 1)
    if errors:
        message = "The model could not embed this text."
        faults = [Fault(f"/texts/{place}", "text_failed", message) for place, key in enumerate(keys) if key in errors]
        raise Invalid(message, code="text_failed", faults=faults)
    return {key: row for key, row in made.items() if isinstance(row, Cached)}
