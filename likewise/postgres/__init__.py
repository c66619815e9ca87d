"""The Postgres that Likewise runs itself: its programs, its folder, its process and its settings; no rows."""
