# SPDX-License-Identifier: Apache-2.0
"""Names that a layer or an archive chose, as errors show them."""

from __future__ import annotations

_SHOWN = 200  # bytes of a name from a layer that an error quotes


def shown(name: bytes) -> str:
    """A name that a layer chose, quoted for an error and cut."""
    return repr(name[:_SHOWN])[1:] + ("…" if len(name) > _SHOWN else "")
