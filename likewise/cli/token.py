"""`likewise token`: a JWT for development."""

import re
from typing import Annotated

import typer

from likewise.cli.names import refuse_no_tenant, scopes_of
from likewise.cli.running import settings_of_verb
from likewise.cli.terminal import note, say, say_json
from likewise.errors import SettingsError

NEVER = "never"
MOST_SECONDS = 3_650 * 86_400

Tenant = Annotated[str, typer.Option(help="Whom the token is for.")]
Scopes = Annotated[str, typer.Option("--scopes", "--scope", help="What it allows, by comma: read, write, admin.")]
Expires = Annotated[str, typer.Option(help="When it ends: in 90s, 30m, 1h, 7d, or never.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]

_DURATION = re.compile(r"([1-9]\d{0,8})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def token(tenant: Tenant, scopes: Scopes = "read,write", expires: Expires = "1h", as_json: AsJson = False) -> None:
    """Make a JWT for a server with LIKEWISE_AUTH=dev and the same secret."""
    from likewise.auth.verification_keys import DevelopmentSecret  # noqa: PLC0415

    settings = settings_of_verb()
    granted, seconds = scopes_of(scopes), _seconds(expires)
    refuse_no_tenant(tenant, "--tenant")
    if settings.dev_jwt_secret is None:
        words = "Set LIKEWISE_DEV_JWT_SECRET to that of the server; `openssl rand -hex 32` makes one."
        raise SettingsError(f"A token is signed with a secret, and there is none. {words}")
    made = DevelopmentSecret(settings.dev_jwt_secret).token(tenant, settings.jwt_tenant_claim, granted, seconds)
    if as_json:
        say_json({"token": made, "tenant": tenant, "scopes": sorted(granted), "expires_in": seconds})
    else:
        # The token alone on stdout, so that a script may take it from there.
        say(made)
        note(f"Tenant {tenant}: {', '.join(sorted(granted))}. It ends {_words(seconds, expires)}.")
    if "dev" not in settings.auth:
        note("LIKEWISE_AUTH does not name `dev` here: a server with these settings refuses this token.")


def _seconds(expires: str) -> int | None:
    if expires == NEVER:
        return None
    found = _DURATION.fullmatch(expires)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= MOST_SECONDS:
        words = f"Write it as 90s, 30m, 1h or 7d, up to {MOST_SECONDS // 86_400}d, or {NEVER}."
        raise typer.BadParameter(words, param_hint="--expires")
    return seconds


def _words(seconds: int | None, expires: str) -> str:
    return NEVER if seconds is None else f"in {expires}"
