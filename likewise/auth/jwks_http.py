"""One request for an issuer's keys: to the address of the settings alone, whose answer is small and in time."""

import asyncio
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from likewise.observe.version import program_version

FETCH_SECONDS = 5.0
# Sets have a few keys of one or two KiB, certificates included.
MOST_BYTES = 256 * 2**10


class FetchFailed(Exception):
    """The keys could not be had. Its words end a sentence, and have nothing in them that came from outside."""


class KeysAddress:
    """Where an issuer publishes its keys."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: httpx2.AsyncClient | None = None

    async def fetch(self) -> bytes:
        """The document, of whatever media type it says it is; FetchFailed if it does not come whole and in time."""
        try:
            # In all, however slowly it drips.
            async with asyncio.timeout(FETCH_SECONDS):
                async with self._opened().stream("GET", self._url) as response:
                    return await _read(response)
        except TimeoutError:
            raise FetchFailed(f"does not answer within {FETCH_SECONDS:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise FetchFailed(f"does not answer ({type(error).__name__})") from None

    async def close(self) -> None:
        """End its connection."""
        if self._client is not None:
            await self._client.aclose()

    def _opened(self) -> httpx2.AsyncClient:
        if self._client is None:
            self._client = _client()
        return self._client


def _client() -> httpx2.AsyncClient:
    try:
        return httpx2.AsyncClient(
            headers={
                "accept": "application/json",
                # Of a compressed answer nobody knows how large it is.
                "accept-encoding": "identity",
                "user-agent": f"likewise/{program_version()}",
            },
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx2.Timeout(FETCH_SECONDS),
            limits=httpx2.Limits(max_connections=1, keepalive_expiry=0),
            follow_redirects=False,
        )
    except (ValueError, ImportError, OSError) as error:
        # Its message may have a proxy's password.
        kind = type(error).__name__
        raise FetchFailed(f"cannot be asked by the proxies and certificates of the environment ({kind})") from None


async def _read(response: httpx2.Response) -> bytes:
    if response.status_code != 200:
        raise FetchFailed(f"answers {response.status_code}")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchFailed("answers compressed, which nobody asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MOST_BYTES:
            raise FetchFailed(f"answers more than {MOST_BYTES // 2**10} KiB")
    return bytes(body)
