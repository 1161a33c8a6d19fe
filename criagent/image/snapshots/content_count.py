"""What a layer's tree holds, in numbers that stay the same for as long as nobody touches it.

Unlike the space that it takes (`tree_count.py`), they depend on no file system. The unpack worker
counts a new layer; fsck counts it again. Standard library alone.
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
