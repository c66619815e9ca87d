"""`likewise doctor`: one file for each part of an installation that it looks at."""
