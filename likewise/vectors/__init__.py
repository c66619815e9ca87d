"""Where vectors are kept and found; ids and numbers only."""
