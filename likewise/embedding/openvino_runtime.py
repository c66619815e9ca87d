"""OpenVINO, imported without its telemetry.

`import openvino` sends an event to its maker over the network and writes under the user's home folder, unless the
package `openvino_telemetry` cannot be imported; then it takes a stub of its own. What runs here is nobody else's
business, so that package cannot be imported while OpenVINO loads.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TELEMETRY = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the import system's own way to say "not there"
    try:
        yield
    finally:
        if before is None:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before


with _without_telemetry():
    import openvino
    from openvino import opset13 as ops

__all__ = ["openvino", "ops"]
