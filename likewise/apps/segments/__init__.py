"""Document segments of many tenants: embed jobs, no text kept, and search by meaning, at `/vectors`."""
