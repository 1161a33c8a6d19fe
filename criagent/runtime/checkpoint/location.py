# SPDX-License-Identifier: Apache-2.0
"""The file that a checkpoint is written to: it has a name only once it is complete. Synchronous.

It has no name while it is written (O_TMPFILE, man 2 open), so a crash leaves nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from criagent.base import faults
from criagent.base.errors import AlreadyExistsError, InvalidRequestError, UnsupportedError
from criagent.runtime.node.paths import RuntimePaths

_SHOWN = 500
_NO_ANONYMOUS_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}


def check_location(location: str, paths: RuntimePaths) -> Path:
    """The archive's path. Raises InvalidRequestError for one that cannot be used."""
    shown = repr(location)[:_SHOWN]
    path = Path(location)
    if not path.is_absolute() or "\0" in location or ".." in path.parts or location[-1] == "/":
        raise InvalidRequestError(f"location {shown} is not an absolute path of a file")
    try:
        parent = path.parent.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "a loop of symlinks"
        raise InvalidRequestError(
            f"location {shown}: its directory cannot be used: {reason}; create it first"
        ) from exc
    if any(parent.is_relative_to(own.resolve()) for own in (paths.root, paths.run_dir)):
        raise InvalidRequestError(
            f"location {shown} is in a directory of the agent; choose another one"
        )
    return parent / path.name


class NewFile:
    """A file without a name, open for writing."""

    def __init__(self, fd: int, directory: int, path: Path) -> None:
        self.fd = fd
        self._directory = directory
        self._path = path

    def publish(self) -> None:
        """Make it durable and give it its name. Raises AlreadyExistsError, OSError."""
        os.fsync(self.fd)
        try:
            os.link(f"/proc/self/fd/{self.fd}", self._path.name, dst_dir_fd=self._directory)
        except FileExistsError:
            raise AlreadyExistsError(f"{self._path} exists; choose another location") from None
        faults.reach("checkpoint:published")
        os.fsync(self._directory)


@contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """A file for `path`, readable by its owner alone; without `publish` it vanishes.

    Raises AlreadyExistsError, UnsupportedError where files cannot be without a name, OSError.
    """
    if os.path.lexists(path):
        raise AlreadyExistsError(f"{path} exists; choose another location")
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _without_name(path.parent)
        try:
            yield NewFile(fd, directory, path)
        finally:
            os.close(fd)
    finally:
        os.close(directory)


def _without_name(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno not in _NO_ANONYMOUS_FILES:
            raise
        raise UnsupportedError(
            f"the file system of {directory} has no files without a name (O_TMPFILE); choose a "
            "location on a local file system"
        ) from exc
