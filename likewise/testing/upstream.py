"""A remote model on the loopback that answers well, or with the trouble that it is told to make.

It has an OpenAI-compatible `/embeddings`, and a `/rerank` as Cohere and Jina have it, or TEI.
"""

import base64
from typing import Any

import numpy as np

from likewise.testing.provider import FakeProvider
from likewise.testing.scripted import ReceivedRequest, ScriptedServer


class Upstream(ScriptedServer):
    """A server with a deterministic model, the one of FakeProvider. Unless it `counts`, it says nothing of tokens."""

    path = "/v1"

    def __init__(self, dimension: int = 16) -> None:
        super().__init__()
        self.model = FakeProvider(dimension)
        self.counts = True

    async def good(self, asked: ReceivedRequest) -> Any:
        """Scores, or the vectors of the texts that were asked for, as OpenAI writes them."""
        return await (self._ranked(asked) if asked.path.endswith("/rerank") else self._embedded(asked))

    async def _ranked(self, asked: ReceivedRequest) -> Any:
        """Scores by the words that a text shares with the query, best first, as rerankers answer."""
        query, *vectors = (await self.model.embed([asked.body["query"], *asked.texts], "document")).vectors
        scores = [min(1.0, max(0.0, float(query @ vector))) for vector in vectors]
        best = sorted(range(len(scores)), key=lambda place: -scores[place])
        if "texts" in asked.body:
            return [{"index": place, "score": scores[place]} for place in best]
        results = [{"index": place, "relevance_score": scores[place]} for place in best]
        tokens = sum(len(asked.body["query"].split()) + len(text.split()) for text in asked.texts)
        usage = {"usage": {"total_tokens": tokens}} if self.counts else {}
        return {"id": "theirs", "model": asked.body["model"], "results": results, **usage}

    async def _embedded(self, asked: ReceivedRequest) -> dict[str, Any]:
        texts = asked.texts
        made = await self.model.embed(texts, "document")
        in_base64 = asked.body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": place, "embedding": written(vector, in_base64=in_base64)}
            for place, vector in enumerate(made.vectors)
        ]
        tokens = int(made.tokens.sum())
        usage = {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}} if self.counts else {}
        return {"object": "list", "data": data, "model": asked.body["model"], **usage}


def written(vector: Any, *, in_base64: bool) -> Any:
    """A vector as a list, or as the base64 of little-endian float32."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode() if in_base64 else [float(x) for x in vector]
