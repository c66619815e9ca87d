"""The caches, a file each; `likewise.embedding.cache` has their contract, and `opening` opens what settings ask for."""
