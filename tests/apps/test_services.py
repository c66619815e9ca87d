"""Services without the server around them."""

import subprocess
import sys

ALL_SERVICES = """
import sys
from likewise.library import APPS
for app in APPS:
    for name in (*app.kinds, *filter(None, [app.service])):
        app.load(name)
assert not {"fastapi", "starlette", "uvicorn"} & set(sys.modules)
"""


def test_a_program_waits_for_no_web_framework() -> None:
    done = subprocess.run([sys.executable, "-c", ALL_SERVICES], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
