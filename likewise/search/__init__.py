"""Finding what is alike: words, meanings, and both together."""
