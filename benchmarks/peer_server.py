"""sentence-transformers behind FastAPI, as its users write it: a route that encodes what it is sent, in a thread."""

import argparse
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--port", type=int)
arguments = parser.parse_args()
app = FastAPI()
model = SentenceTransformer(arguments.model, device="cpu")


class Request(BaseModel):
    """OpenAI's request, as far as it is sent here."""

    input: str | list[str]


@app.post("/v1/embeddings")
def embeddings(request: Request) -> dict[str, Any]:
    """OpenAI's answer."""
    texts = [request.input] if isinstance(request.input, str) else request.input
    vectors = model.encode(texts, normalize_embeddings=True).tolist()
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)]
    return {"object": "list", "data": data}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")
