"""The general API: named collections of records, written and searched."""
