# SPDX-License-Identifier: Apache-2.0
"""Likely intended values of misspelt ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(name: str, known: Iterable[str]) -> str:
    """The known name that is close to an unknown one, as the end of a text; "" = there is none."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
