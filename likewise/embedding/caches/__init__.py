"""The caches, a file each; `likewise.embedding.cache` has their contract."""
