"""Stores of vectors, which know ids and numbers only."""
