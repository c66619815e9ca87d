"""Postcards: the smallest app that has one of everything. All that the rest of the house knows of it is its row."""
