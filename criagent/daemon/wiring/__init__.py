"""The parts of the daemon put together: each gets just what it needs, nothing is global."""

from criagent.daemon.wiring.images import ImageParts, image_parts
from criagent.daemon.wiring.runtime import detected_driver, networks, probed_handlers, runtime
from criagent.daemon.wiring.stores import Executors, Stores

__all__ = [
    "Executors",
    "ImageParts",
    "Stores",
    "detected_driver",
    "image_parts",
    "networks",
    "probed_handlers",
    "runtime",
]
