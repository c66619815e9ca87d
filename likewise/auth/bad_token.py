"""Why a JWT is refused. Whoever sent it is told that it is refused and nothing else."""

from typing import Literal

# As likewise_tokens_refused_total counts them.
Reason = Literal[
    "malformed", "header", "algorithm", "claims", "time", "audience", "issuer", "tenant", "scopes", "key", "signature"
]


class BadToken(Exception):
    """This token is refused; the reason is for metrics and for logs at `debug`."""

    def __init__(self, reason: Reason) -> None:
        self.reason: Reason = reason
        super().__init__(reason)
