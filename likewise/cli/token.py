"""`likewise token`: make a JWT for development."""

import re
from typing import Annotated

import typer

from likewise.auth.verification_keys import DevelopmentSecret
from likewise.cli.names import refuse_no_tenant, scopes_of
from likewise.cli.running import AsJson, command_settings
from likewise.cli.terminal import answer, note
from likewise.errors import SettingsError

NEVER = "never"
MAX_SECONDS = 3_650 * 86_400

_DURATION = re.compile(r"([1-9]\d{0,8})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def token(
    tenant: Annotated[str, typer.Option(help="Whom the token is for.")],
    scopes: Annotated[
        str, typer.Option("--scopes", "--scope", help="What it allows, by comma: read, write, admin.")
    ] = "read,write",
    expires: Annotated[str, typer.Option(help="When it ends: in 90s, 30m, 1h, 7d, or never.")] = "1h",
    as_json: AsJson = False,
) -> None:
    settings = command_settings()
    granted, seconds = scopes_of(scopes), _seconds(expires)
    refuse_no_tenant(tenant, "--tenant")
    if settings.dev_jwt_secret is None:
        words = "Set LIKEWISE_DEV_JWT_SECRET to that of the server; `openssl rand -hex 32` makes one."
        raise SettingsError(f"A token is signed with a secret, and there is none. {words}")
    made = DevelopmentSecret(settings.dev_jwt_secret).token(tenant, settings.jwt_tenant_claim, granted, seconds)
    facts = {"token": made, "tenant": tenant, "scopes": sorted(granted), "expires_in": seconds}
    # The token alone on stdout, so that a script may take it from there.
    answer(facts, made, as_json=as_json)
    if not as_json:
        ends = NEVER if seconds is None else f"in {expires}"
        note(f"Tenant {tenant}: {', '.join(sorted(granted))}. It ends {ends}.")
    if "dev" not in settings.auth:
        note("LIKEWISE_AUTH does not name `dev` here: a server with these settings refuses this token.")


def _seconds(expires: str) -> int | None:
    if expires == NEVER:
        return None
    found = _DURATION.fullmatch(expires)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= MAX_SECONDS:
        words = f"Write it as 90s, 30m, 1h or 7d, up to {MAX_SECONDS // 86_400}d, or {NEVER}."
        raise typer.BadParameter(words, param_hint="--expires")
    return seconds
