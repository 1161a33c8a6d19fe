# SPDX-License-Identifier: Apache-2.0
"""How a layer's directory differs from what was counted when the layer was unpacked."""

from __future__ import annotations

from pathlib import Path

from criagent.base.os_errors import of_the_agent
from criagent.image.snapshots.content_count import content_count
from criagent.model.image import Snapshot


def content_problem(layer: Snapshot, tree: Path) -> str:
    """The difference between the row of a committed layer and `tree`, its files; "" = none.

    Raises OSError when the agent lacks descriptors or memory to look.
    """
    try:
        names, size, facts = content_count(tree)
    except FileNotFoundError:
        return "the layer's directory is missing"
    except OSError as exc:
        if of_the_agent(exc):
            raise
        return f"the layer cannot be read: {exc.strerror}"
    if layer.inodes and not names:
        return "the layer's directory is empty"
    if not layer.entries:  # not counted when it was unpacked, or empty
        return ""
    if names != layer.entries:
        return f"the layer has {names} files and directories instead of {layer.entries}"
    if size != layer.content_bytes:
        return f"the layer's files have {size} bytes instead of {layer.content_bytes}"
    if layer.facts and facts != layer.facts:
        return "types, owners, modes, times, targets or attributes of the layer's files changed"
    return ""
