# SPDX-License-Identifier: Apache-2.0
"""The content of a layer's tree, in numbers that stay the same while it is not changed.

Unlike disk usage (`tree_count.py`), they do not depend on the file system. The unpack worker counts
a new layer; fsck counts it again. Standard library only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def content_count(top: Path) -> tuple[int, int]:
    """How many names are below `top`, and how many bytes its regular files have by each name.

    Links are not followed. Raises OSError.
    """
    names = size = 0
    for _, directories, files, fd in os.fwalk(top, follow_symlinks=False, onerror=_raise):
        names += len(directories) + len(files)
        for name in files:
            facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode):
                size += facts.st_size
    return names, size


def _raise(error: OSError) -> None:
    raise error
