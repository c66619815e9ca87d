"""Models behind an HTTP API: the client of a provider, its limits and its errors."""
