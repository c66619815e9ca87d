"""Callers by their credentials: a header becomes a credential, its claims are checked, and a caller comes out."""
