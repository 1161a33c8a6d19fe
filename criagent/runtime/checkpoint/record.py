# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of a pod has in the caller's directory, so that a crash leaves none of it.

The record is on disk before the first file is, and goes when the checkpoint is complete.
Synchronous.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from criagent.base.errors import InvalidRequestError
from criagent.kernel import mount
from criagent.kernel.trees import remove_tree
from criagent.runtime.checkpoint import manifest
from criagent.runtime.node.paths import RuntimePaths

WORK: Final = ".work"
IMAGES: Final = "checkpoint"  # directory of what CRIU wrote
SHM: Final = "devshm-checkpoint.tar"
_FILE = "record.json"


class Record(msgspec.Struct, frozen=True):
    """The caller's directory and the ids of the containers."""

    output: str
    containers: tuple[str, ...]

    def write(self, directory: Path) -> None:
        """Make it durable in `directory`."""
        path = directory / _FILE
        with path.open("xb") as file:
            file.write(msgspec.json.encode(self))
            file.flush()
            os.fsync(file.fileno())
        for made in (directory, directory.parent):
            fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def remove_files(self) -> None:
        """Take away what the checkpoint has in the caller's directory, which stays."""
        output = Path(self.output)
        remove_work(output)
        for name in (manifest.NAME, SHM, *map(archive_name, self.containers)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                (output / name).unlink()


def remove_work(output: Path) -> None:
    """Take away what was archived."""
    mount.detach_below(output / WORK)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        remove_tree(output / WORK)


def archive_name(container_id: str) -> str:
    """The container's archive in the caller's directory."""
    return f"{container_id}.tar"


def read_record(directory: Path) -> Record | None:
    """The record in `directory`; None when there is none, or it is not complete."""
    try:
        return msgspec.json.decode((directory / _FILE).read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def check_output(output_path: str, paths: RuntimePaths) -> Path:
    """The directory. Raises InvalidRequestError unless it is one, empty, and its owner's alone."""
    shown = repr(output_path)[:500]
    path = Path(output_path)
    if not path.is_absolute() or "\0" in output_path or ".." in path.parts:
        raise InvalidRequestError(f"output_path {shown} is not an absolute path")
    try:
        found = path.resolve(strict=True)
        mode = found.stat().st_mode
        names = os.listdir(found)
    except (OSError, RuntimeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "a loop of symlinks"
        raise InvalidRequestError(f"output_path {shown} cannot be used: {reason}") from exc
    if any(found.is_relative_to(own.resolve()) for own in (paths.root, paths.run_dir)):
        raise InvalidRequestError(f"output_path {shown} is a directory of the agent")
    if names:
        raise InvalidRequestError(f"output_path {shown} is not empty")
    if mode & 0o022:
        raise InvalidRequestError(
            f"output_path {shown} can be written to by others than its owner; chmod it to 0700"
        )
    return found
