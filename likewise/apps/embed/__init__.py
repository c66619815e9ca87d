"""Text in, vectors out, for programs that know the embedder that this one replaces or OpenAI's API."""
