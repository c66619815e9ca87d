"""What `likewise doctor` looks at of whoever signs the tokens."""

from collections.abc import AsyncIterator

from likewise.auth.issuer import FetchFailed, KeysAddress
from likewise.auth.verification_keys import published_keys
from likewise.cli.doctor.finding import Finding
from likewise.cli.terminal import counted
from likewise.settings import Settings

_MEND = "See that LIKEWISE_JWKS_URL is the `jwks_uri` of the issuer, and that this machine reaches it."


async def issuer(settings: Settings) -> AsyncIterator[Finding]:
    """The issuer of `jwks`, if that is a way: that it publishes keys which can be used."""
    if "jwks" not in settings.auth or settings.jwks_url is None:
        return
    address = KeysAddress(settings.jwks_url)
    try:
        usable = published_keys(await address.fetch()).usable
    except FetchFailed as failed:
        yield Finding("issuer", f"It {failed}.", _MEND)
    except ValueError:
        yield Finding("issuer", "It answers with what is no set of keys.", _MEND)
    else:
        mend = (
            None if usable else "See that the issuer signs with RS256 or ES256: a shared secret is no key to publish."
        )
        yield Finding("issuer", f"It publishes {counted(usable, 'key')} for signatures", mend)
    finally:
        await address.close()
