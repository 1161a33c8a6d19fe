# SPDX-License-Identifier: Apache-2.0
"""Mount targets of a container: resolved within its root before a runtime sees them.

An image may hold symlinks on the way to a target (/var/run leads to /run in most). A runtime that
follows them by itself has been led out of the root (CVE-2026-41579, CVE-2021-30465) or onto /proc
(CVE-2019-16884), so it gets the resolved path. No process can change the root file system
meanwhile. /proc, /dev and /sys themselves must be directories, and no link may lead there.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from criagent.base.errors import InvalidRequestError
from criagent.kernel.mount import MountEntry, mountinfo
from criagent.kernel.paths import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.mounts.host_paths import local_path

_PLAIN = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_KERNEL = ("dev", "proc", "sys")
_LINKS = 40  # as the kernel (man 7 path_resolution)
_STEPS = 1000  # components in total: an image can chain links through deep directories
_ROUNDS = 8  # nested mounts through links of other mounts
# Directories of a process that lead to its open files, also out of the root (CVE-2024-21626).
_MAGIC = re.compile(r"/proc/(self|thread-self|[0-9]+)(/.*)?|/dev/fd(/.*)?")


def resolve_targets(rootfs: Path, spec: OciObject, image: str) -> OciObject:
    """`spec` with mounts and devices at the paths to which links of the root lead.

    Mounts are ordered outer before inner by those paths. A target below another mount is followed
    through the source of that mount, unless that may not answer (a network file system).

    Reads the root: call it in a thread. Raises InvalidRequestError, naming `image`, when /dev,
    /proc or /sys is not a directory, when a link leads a target there or to "/" (the link to
    /dev/shm of old images is allowed), for a working directory among a process's open files, and
    for a target whose links lead nowhere.
    """
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_kernel_places(root, image)
        mounts = _resolved_mounts(root, spec["mounts"], image)
        walk = _Walk(root, image, mounts)
        _check_cwd(walk, str(spec["process"]["cwd"]), image)
        devices = [_device(walk, device, image) for device in spec["linux"]["devices"]]
    finally:
        os.close(root)
    return {**spec, "mounts": mounts, "linux": {**spec["linux"], "devices": devices}}


def landing(rootfs: int, path: str, image: str) -> str:
    """The path within the directory `rootfs` to which `path` leads while nothing is mounted there.

    Raises InvalidRequestError as `resolve_targets` does.
    """
    return _landed(_Walk(rootfs, image), cleaned(path), image)


def cleaned(path: str) -> str:
    """An absolute path without "." and "..", as OCI runtimes clean the targets of mounts."""
    return posixpath.normpath("/" + path.lstrip("/"))


def is_kernel_place(path: str) -> bool:
    """Whether the cleaned `path` is at or below /dev, /proc or /sys."""
    return path.split("/", 2)[1] in _KERNEL


class _Walk:
    """Follows symlinks of a root with `mounts` on it, as man 7 path_resolution describes."""

    def __init__(self, root: int, image: str, mounts: Sequence[OciObject] = ()) -> None:
        self._root = root
        self._image = image
        self._mounts = {mount["destination"]: mount for mount in mounts}
        self._table: list[MountEntry] | None = None

    def resolve(self, path: str) -> str:
        """The path without symlinks to which `path` leads; a missing entry is not a symlink."""
        if self._holder(path) == "/":
            try:
                os.close(openat2(self._root, path, os.O_PATH, _PLAIN))
            except (FileNotFoundError, NotADirectoryError):
                return path
            except OSError as exc:
                if exc.errno == errno.ENAMETOOLONG:
                    raise self._refusal(path, exc.strerror or "") from None
                if exc.errno != errno.ELOOP:
                    raise
            else:
                return path
        return self.follow(path)

    def add(self, mount: OciObject) -> None:
        """Add a mount at a resolved path."""
        self._mounts[mount["destination"]] = mount

    def follow(self, path: str) -> str:
        """As `resolve`, for a path that may also contain ".."."""
        waiting = list(reversed(path.split("/")))
        done = [("", "/")]  # each directory on the way, and the innermost mount that contains it
        links = steps = 0
        while waiting:
            part = waiting.pop()
            steps += 1
            if steps > _STEPS:
                raise self._refusal(path, f"symlinks make it longer than {_STEPS} components")
            if part in {"", "."}:
                continue
            if part == "..":
                del done[max(1, len(done) - 1) :]
                continue
            above, holder = done[-1]
            here = f"{above}/{part}"
            if here in self._mounts:
                done.append((here, here))
                continue
            target = self._link(here, holder)
            if target is None:
                done.append((here, holder))
                continue
            links += 1
            if links > _LINKS:
                raise self._refusal(path, "too many symlinks")
            if target.startswith("/"):
                del done[1:]
            waiting += reversed(target.split("/"))
        found = done[-1][0] or "/"
        try:
            found.encode()
        except UnicodeEncodeError:
            raise self._refusal(path, "a symlink leads to a name that is not UTF-8") from None
        return found

    def _holder(self, path: str) -> str:
        """The innermost mount above `path`; "/" for the root itself."""
        here = path.rpartition("/")[0]
        while here and here not in self._mounts:
            here = here.rpartition("/")[0]
        return here or "/"

    def _link(self, path: str, holder: str) -> str | None:
        """Target of the symlink at `path`, whose parents are none; None if it is not a symlink."""
        if holder == "/":
            return _link_at(self._root, path[1:])
        mount = self._mounts[holder]
        source = str(mount["source"])
        if mount["type"] != "bind" or not self._may_look(source):
            return None
        try:
            base = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None  # a file, or missing: the runtime reports it
        try:
            return _link_at(base, path[len(holder) + 1 :])
        finally:
            os.close(base)

    def _may_look(self, source: str) -> bool:
        if self._table is None:
            self._table = mountinfo()
        try:
            return local_path(source, self._table) is not None
        except OSError:
            return False

    def _refusal(self, path: str, why: str) -> InvalidRequestError:
        return InvalidRequestError(f"image {self._image[:200]}: path {path[:200]!r}: {why}")


def _link_at(base: int, rest: str) -> str | None:
    try:
        fd = openat2(base, rest, os.O_PATH | os.O_NOFOLLOW, _PLAIN)
    except OSError:
        return None  # missing, or another error that the runtime reports as well
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def _check_kernel_places(root: int, image: str) -> None:
    for name in _KERNEL:
        try:
            fd = openat2(root, name, os.O_PATH | os.O_NOFOLLOW, _PLAIN)
        except FileNotFoundError:
            continue
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                continue
            kind = "a file"
            if stat.S_ISLNK(mode):
                kind = f"a symlink to {os.readlink('', dir_fd=fd)[:100]!r}"
        finally:
            os.close(fd)
        raise InvalidRequestError(
            f"image {image[:200]}: /{name} is {kind}, but the container's own is mounted there; "
            "it must be a directory or missing"
        )


def _resolved_mounts(root: int, mounts: Sequence[OciObject], image: str) -> list[OciObject]:
    """Resolved in rounds: a link may lead one target below another one's."""
    asked = [(mount["destination"], mount) for mount in mounts]
    for _ in range(_ROUNDS):
        walk = _Walk(root, image)
        done: list[tuple[str, OciObject]] = []
        for text, mount in asked:
            place = _landed(walk, mount["destination"], image, text)
            done.append((text, {**mount, "destination": place}))
            walk.add(done[-1][1])
        if all(
            now["destination"] == was["destination"]
            for (_, now), (_, was) in zip(done, asked, strict=True)
        ):
            return [mount for _, mount in done]
        asked = sorted(done, key=lambda item: _depth(item[1]["destination"]))
    raise InvalidRequestError(
        f"image {image[:200]}: symlinks lead mounts below one another in a cycle"
    )


def _landed(walk: _Walk, path: str, image: str, asked: str = "") -> str:
    place = walk.resolve(path)
    text = asked or path
    if place == text:
        return place
    led = is_kernel_place(place) and place.split("/")[1] != text.split("/")[1]
    if place == "/" or (led and not PurePosixPath(place).is_relative_to("/dev/shm")):  # noqa: S108
        raise InvalidRequestError(
            f"image {image[:200]}: symlinks lead {text[:200]!r} to {place[:200]!r}, which must "
            "be mounted by its own name"
        )
    return place


def _device(walk: _Walk, device: OciObject, image: str) -> OciObject:
    path = cleaned(str(device["path"]))
    return device if is_kernel_place(path) else {**device, "path": _landed(walk, path, image)}


def _check_cwd(walk: _Walk, cwd: str, image: str) -> None:
    place = walk.follow(cwd)
    if _MAGIC.fullmatch(place):
        raise InvalidRequestError(
            f"image {image[:200]}: working directory {cwd[:200]!r} leads to {place[:200]!r}, a "
            "directory of a process's open files; set another working_dir"
        )


def _depth(path: str) -> int:
    return 0 if path == "/" else path.count("/")
