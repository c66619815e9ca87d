"""The response of a request on its way out."""

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send


class SentResponse:
    """Passes messages on, remembers the status of the response, and adds the request's id."""

    def __init__(self, send: Send, request_id: str | None = None) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._request_id is not None:
                MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)
