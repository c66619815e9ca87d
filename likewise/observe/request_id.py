"""The id that follows one request through answers, jobs and log lines."""

import re
import secrets
from contextvars import ContextVar

REQUEST_ID: ContextVar[str | None] = ContextVar("likewise_request_id", default=None)

_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id_for(offered: str | None) -> str:
    """Return the caller's own id if it is harmless to repeat, else a new one."""
    if offered is not None and _ACCEPTED.fullmatch(offered):
        return offered
    return secrets.token_hex(16)
