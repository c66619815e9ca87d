"""The providers: OpenVINO's, torch's, and OpenAI's with its parts; `likewise.embedding.provider` has their contract."""
