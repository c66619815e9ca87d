"""Model files: folders and what they say, weights and their checksums, downloads."""
