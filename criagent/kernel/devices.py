# SPDX-License-Identifier: Apache-2.0
"""The node's own device nodes. No policy."""

from __future__ import annotations

import os
import stat

_NULL = os.makedev(1, 3)


def restore_null() -> None:
    """Give /dev/null back to root with access for everyone, if it is the device and differs."""
    facts = os.stat(os.devnull)
    if not stat.S_ISCHR(facts.st_mode) or facts.st_rdev != _NULL:
        return
    if (facts.st_uid, facts.st_gid) != (0, 0):
        os.chown(os.devnull, 0, 0)
    if stat.S_IMODE(facts.st_mode) != 0o666:
        os.chmod(os.devnull, 0o666)  # noqa: S103 - its mode everywhere
