"""Text in, vectors out; knows no web framework and no SQL. Start at `Embedder`, in `embedder.py`."""
