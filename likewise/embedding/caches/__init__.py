"""The caches: a file, or a folder, each; `likewise.embedding.cache` has their contract."""
