"""The way in: records to rows, and waiting contents to vectors."""
