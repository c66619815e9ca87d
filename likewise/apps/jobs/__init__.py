"""Jobs: what became of work that outlived its request, at `/jobs`."""
