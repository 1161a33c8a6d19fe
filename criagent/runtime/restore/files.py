# SPDX-License-Identifier: Apache-2.0
"""Changed files of a checkpoint, written into the new container or pod. Synchronous.

The container has chosen every name and link. Each is resolved name by name below the root, as those
of image layers are.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from criagent.base.errors import CorruptError, ExhaustedError
from criagent.image.tar.decompress import BadLayerError, LayerStream
from criagent.image.unpack.extract import Extractor, TooLargeError
from criagent.image.unpack.layer_tree import Below
from criagent.kernel.paths import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2
from criagent.kernel.trees import remove_tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def delete(root: Path, paths: Iterable[str]) -> None:
    """Delete absolute `paths` below `root`; those that are not there are fine."""
    fd = os.open(root, _DIRECTORY)
    try:
        for path in paths:
            _delete(fd, path)
    finally:
        os.close(fd)


def extract(archive: Path, root: Path) -> None:
    """Write the members of the plain tar `archive` below `root`, over what is there.

    Raises CorruptError, ExhaustedError, OSError.
    """
    facts = os.statvfs(root)
    with archive.open("rb") as file:
        stream = LayerStream(file)
        try:
            Extractor(
                stream,
                os.fsencode(root),
                below=Below.MERGED,
                limit=facts.f_bavail * facts.f_frsize,
                whiteouts=False,
            ).run()
        except BadLayerError as exc:
            raise CorruptError(f"{archive.name} of the checkpoint: {exc}") from exc
        except TooLargeError:
            raise ExhaustedError(
                f"no space left for the files of the checkpoint at {root}"
            ) from None
        finally:
            stream.close()


def _delete(root: int, path: str) -> None:
    parent, _, name = path.strip("/").rpartition("/")
    if name in {"", ".", ".."}:
        return
    try:
        above = openat2(root, parent or ".", _DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
                remove_tree(name, dir_fd=above)
            else:
                os.unlink(name, dir_fd=above)
        finally:
            os.close(above)
    except OSError as exc:
        if exc.errno not in _GONE:
            raise
