# SPDX-License-Identifier: Apache-2.0
"""storage.containers_root: the file system of writable layers, recognised by a file on it.

`<containers_root>/criagent.id` has the id that storage.root remembers, and that one's path. A
directory without it, while containers have their layers there, is one that is not mounted. The file
is locked (man 2 flock) while the agent serves. Synchronous.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import secrets
from pathlib import Path

from criagent.base.errors import UnavailableError, UnsupportedError
from criagent.image.blobs import disk_full

ID_FILE = "criagent.id"
_ID_BYTES = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """The directory `place` ("" = storage.root itself) for `users` writable layers that are there.

    `id` is what storage.root remembers, "" = nothing.
    """

    place: str
    id: str
    users: int

    @classmethod
    def of(cls, remembered: str, wanted: str, *, users: int) -> Claim:
        """`remembered` is "ID PATH", or "". Raises UnsupportedError for another directory than that
        of the containers."""
        own_id, _, place = remembered.partition(" ")
        if users and wanted != place:
            raise UnsupportedError(
                f"storage.containers_root is {_shown(wanted)}, but the writable layers of "
                f"{users} containers are in {_shown(place)}; set it back, or remove all pods "
                "first (crictl rmp -a -f)"
            )
        return cls(wanted, own_id, users)


@dataclasses.dataclass(slots=True)
class ContainersRoot:
    """A directory that is ours until it is closed; `remembered` is for the database."""

    place: Path | None = None
    remembered: str = ""
    content: str = ""  # of the file
    fd: int = -1

    def mark(self) -> None:
        """Write the id, durably; before the first layer. Idempotent. Raises ExhaustedError."""
        if self.place is None:
            return
        with disk_full(self.place):
            if os.pread(self.fd, len(self.content) + 1, 0) != self.content.encode():
                os.pwrite(self.fd, self.content.encode(), 0)
                os.ftruncate(self.fd, len(self.content.encode()))
                os.fsync(self.fd)
                _sync(self.place)

    def close(self) -> None:
        """Let another agent have it; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def take(claim: Claim, root: Path) -> ContainersRoot:
    """Lock the directory of the claim for the agent of the storage root `root`.

    Raises UnavailableError when it is not mounted, another agent's, or cannot be used.
    """
    if not claim.place:
        return ContainersRoot()
    place = Path(claim.place)
    try:
        fd = _open(claim, place)
    except OSError as exc:
        raise UnavailableError(
            f"storage.containers_root {place} cannot be used: {exc.strerror}"
        ) from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(
                f"another criagent serves with storage.containers_root {place}; stop it, or give "
                "this one a directory of its own"
            ) from None
        found, _, others_root = os.pread(fd, 8192, 0).decode(errors="replace").partition("\n")
        own_id = _checked(claim, found.strip(), others_root.strip(), root)
    except BaseException:
        os.close(fd)
        raise
    return ContainersRoot(place, f"{own_id} {claim.place}", f"{own_id}\n{root}\n", fd)


def _open(claim: Claim, place: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    if claim.users:
        try:
            return os.open(place / ID_FILE, flags)
        except FileNotFoundError:
            raise _lost(claim) from None
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(place / ID_FILE, flags | os.O_CREAT, 0o600)


def _checked(claim: Claim, found: str, others_root: str, root: Path) -> str:
    """The id to go on with, where the file has the id `found`."""
    if claim.users:
        if found == claim.id:
            return found
        raise _lost(claim) if not found else _of_another(claim, others_root)
    if found and found != claim.id:
        if others_root != str(root):
            raise _of_another(claim, others_root)
        return found  # of our own directory: its database was lost
    return claim.id or secrets.token_hex(_ID_BYTES)


def _lost(claim: Claim) -> UnavailableError:
    file = Path(claim.place, ID_FILE)
    return UnavailableError(
        f"storage.containers_root {claim.place} has no file {ID_FILE}, so it is not the directory "
        f"in which {claim.users} containers have their writable layers; mount its file system and "
        f"start again. If it is lost, and its containers with it: `echo {claim.id} > {file}`"
    )


def _of_another(claim: Claim, others_root: str) -> UnavailableError:
    return UnavailableError(
        f"storage.containers_root {claim.place} has the writable layers of the agent with "
        f"storage.root {others_root[:200] or 'unknown'}; set another directory, or delete "
        f"{Path(claim.place, ID_FILE)} and the directory snapshots beside it if that agent is gone"
    )


def _shown(place: str) -> str:
    return place or "storage.root (the key is empty)"


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
