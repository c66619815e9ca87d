"""Rows: the only place with SQL for them."""
