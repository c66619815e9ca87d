"""The environment of processes that a test starts."""

import os


def without_settings() -> dict[str, str]:
    """That of this process, without what whoever runs the tests has set for a Likewise of their own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LIKEWISE_")}
