# SPDX-License-Identifier: Apache-2.0
"""Namespaces: created, entered and pinned in threads that end afterwards.

A thread that has changed its namespace never returns to a pool. Synchronous, no policy.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import functools
import os
import platform
import socket
import struct
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from ctypes import c_int, c_ulong
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from criagent.kernel import mount
from criagent.kernel.syscalls import check, libc, syscall
from criagent.model.common import IdMapping

T = TypeVar("T")

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000

_FLAGS = {"net": CLONE_NEWNET, "ipc": CLONE_NEWIPC, "uts": CLONE_NEWUTS}
# setresuid(2) and setresgid(2) of the calling thread only; the C library's change all threads.
_SETRESUID = {"x86_64": 117, "aarch64": 147, "riscv64": 147, "ppc64le": 164, "s390x": 208}
_SETRESGID = {"x86_64": 119, "aarch64": 149, "riscv64": 149, "ppc64le": 169, "s390x": 210}
_PR_SET_DUMPABLE = 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def unshare(flags: int) -> None:
    """unshare(2) of the calling thread."""
    check(libc.unshare(c_int(flags)), "unshare")


def setns(fd: int, nstype: int) -> None:
    """setns(2) of the calling thread."""
    check(libc.setns(c_int(fd), c_int(nstype)), "setns")


def in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a new thread, wait for its end, return its result or raise its error.

    Raises MemoryError when the thread ends before its first step. Thread.start() would wait for
    that step for ever (CPython issue 140746), so the end is seen by what the thread alone holds: it
    is freed in any case, and the callback of its weak reference, a C function, needs no frame.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    ended: SimpleQueue[object] = SimpleQueue()

    def run(held: object) -> None:
        del held  # the thread has it; a traceback of this frame must not
        try:
            outcome.append(call())
        except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(exc)

    held = _Held()
    reference = weakref.ref(held, ended.put)
    _thread.start_new_thread(run, (held,))
    del held
    ended.get()
    del reference
    if failure:
        raise failure[0]
    if not outcome:
        raise MemoryError("a thread ended before its first step")
    return outcome[0]


class _Held:
    """What a thread holds until its end."""

    __slots__ = ("__weakref__",)


def in_netns(path: Path, call: Callable[[], T]) -> T:
    """Run `call` inside the network namespace pinned at `path`."""

    def run() -> T:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)
        return call()

    return in_thread(run)


def in_each_netns(paths: Sequence[Path], call: Callable[[], T]) -> list[T | None]:
    """Run `call` inside each of the network namespaces pinned at `paths`, in one thread.

    The result is None for a namespace that no longer exists.
    """

    def enter(path: Path) -> T | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(fd, CLONE_NEWNET)
            finally:
                os.close(fd)
            return call()
        except OSError:
            return None

    return in_thread(lambda: [enter(path) for path in paths]) if paths else []


def pin_namespaces(
    targets: Mapping[str, Path], *, sysctls: Mapping[str, str], hostname: str | None
) -> None:
    """Create the namespaces named by `targets` ("net", "ipc", "uts") and pin each at its path.

    This thread remains in them, so it must end afterwards. Inside, lo is up, `hostname` and
    `sysctls` (dotted names) are set. The caller has validated them. On failure some pins may exist;
    `unpin` is the undo.
    """
    unshare(sum(_FLAGS[kind] for kind in targets))
    if hostname is not None:
        socket.sethostname(hostname)
    for name, value in sysctls.items():
        _write_sysctl(name, value)
    if "net" in targets:
        link_up("lo")
    _pin(targets, "/proc/thread-self/ns")


def pin_namespaces_of(
    pid: int,
    targets: Mapping[str, Path],
    *,
    root: tuple[int, int],
    sysctls: Mapping[str, str],
    hostname: str,
) -> None:
    """Like `pin_namespaces`, for the namespaces of process `pid`, including "user", which owns
    them.

    `root` is the node's uid and gid of root in the user namespace: since Linux 5.19 only root may
    write the sysctls of an IPC namespace. The thread may have become that root.
    """
    for kind, flag in _FLAGS.items():
        fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, flag)
        finally:
            os.close(fd)
    socket.sethostname(hostname)
    of_net = {name for name in sysctls if name.startswith("net.")}
    for name in of_net:
        _write_sysctl(name, sysctls[name])
    link_up("lo")
    _pin(targets, f"/proc/{pid}/ns")
    others = {name: value for name, value in sysctls.items() if name not in of_net}
    _write_as_root_of(root, others)


def write_id_maps(pid: int, uids: Iterable[IdMapping], gids: Iterable[IdMapping]) -> None:
    """Map the ids of the user namespace that process `pid` created (man 7 user_namespaces)."""
    for name, mappings in (("gid_map", gids), ("uid_map", uids)):
        lines = [f"{m.container_id} {m.host_id} {m.length}\n" for m in mappings]
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, "".join(lines).encode())
        finally:
            os.close(fd)


def _pin(targets: Mapping[str, Path], directory: str) -> None:
    for kind, target in targets.items():
        target.touch(mode=0o600)
        mount.mount(f"{directory}/{kind}", target, flags=mount.MS_BIND)


def _write_as_root_of(root: tuple[int, int], sysctls: Mapping[str, str]) -> None:
    """Write as this thread, or, where that is denied, as `root`, which the thread remains."""
    changed = False
    for name, value in sysctls.items():
        try:
            _write_sysctl(name, value)
        except PermissionError:
            if changed:
                raise
            _become(*root)
            changed = True
            _write_sysctl(name, value)


def _become(uid: int, gid: int) -> None:
    """Give this thread alone real, effective and saved ids; it loses its capabilities."""
    machine = platform.machine()
    if machine not in _SETRESUID:
        raise PermissionError(errno.EACCES, f"threads on {machine} cannot change ids here")
    try:
        syscall(_SETRESGID[machine], "setresgid", *(c_ulong(gid) for _ in range(3)))
        syscall(_SETRESUID[machine], "setresuid", *(c_ulong(uid) for _ in range(3)))
    finally:
        # The kernel marks the whole process as not dumpable, as after running a setuid program.
        check(libc.prctl(c_int(_PR_SET_DUMPABLE), c_ulong(1), *[c_ulong(0)] * 3), "prctl")


def unpin(target: Path) -> None:
    """Remove the pin; no effect when there is none.

    Unlinking detaches it in other mount namespaces too, which umount2 does not reach.
    """
    mount.detach(target)
    target.unlink(missing_ok=True)


def is_pinned(target: Path) -> bool:
    """Whether a namespace is bound at `target` (as opposed to the empty file below it)."""
    try:
        return os.stat(target).st_dev == _file_system_of_namespaces()
    except FileNotFoundError:
        return False


@functools.cache
def _file_system_of_namespaces() -> int:
    return os.stat("/proc/self/ns/net").st_dev


def link_up(name: str) -> None:
    """Bring an interface of this thread's network namespace up (man 7 netdevice)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sh14x", name.encode(), 0)
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", answer, 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), flags | _IFF_UP))


@functools.lru_cache(64)  # the same ones for every pod
def _sysctl_path(name: str) -> str:
    # A slash stands for a dot within a part, as in net.ipv4.conf.eth0/100.forwarding.
    return "/proc/sys/" + "/".join(part.replace("/", ".") for part in name.split("."))


def _write_sysctl(name: str, value: str) -> None:
    path = _sysctl_path(name)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as exc:
        exc.filename = path
        raise
    finally:
        os.close(fd)
