"""The providers, a file each; `likewise.embedding.provider` has their contract."""
