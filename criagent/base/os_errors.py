# SPDX-License-Identifier: Apache-2.0
"""Errors of the kernel as errors of the agent: the call, the object, and the cure.

Packages let an OSError pass when they have nothing to add; the boundary translates it here. Classes
differ from absl's ErrnoToStatusCode where the CRI gives a status a meaning of its own: a missing
file of the node is not NOT_FOUND, which the kubelet reads as "the container is gone".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from criagent.base import errors

_FULL = "free space and inodes there"
_DISK = "check dmesg, then repair or remount it"
_REFUSED = (
    "the agent lacks a capability, or a security module (AppArmor, SELinux, seccomp) denies the "
    "call; run `criagent doctor` and check dmesg"
)
_MODULE = (
    "the kernel lacks this feature or its module is not loaded (veth, bridge, overlay, "
    "nf_tables); load it with modprobe and run `criagent doctor`"
)
_PROCESSES = (
    "a limit on processes is reached; check TasksMax of the criagent unit, kernel.pid_max and "
    "kernel.threads-max"
)

_CLASSES: dict[int, tuple[type[errors.AgentError], str]] = {
    errno.ENOSPC: (errors.ExhaustedError, _FULL),
    errno.EDQUOT: (
        errors.ExhaustedError,
        ("the disk quota is used up; free space or raise the quota"),
    ),
    errno.EMFILE: (errors.ExhaustedError, "raise LimitNOFILE of the criagent unit"),
    errno.ENFILE: (errors.ExhaustedError, "raise the sysctl fs.file-max"),
    errno.ENOMEM: (errors.ExhaustedError, "free memory on the node"),
    errno.ENOBUFS: (errors.ExhaustedError, "free memory on the node"),
    errno.EAGAIN: (errors.ExhaustedError, _PROCESSES),
    errno.EROFS: (errors.UnavailableError, f"the file system is read-only; {_DISK}"),
    errno.EIO: (errors.UnavailableError, f"the disk reports errors; {_DISK}"),
    errno.EUCLEAN: (errors.UnavailableError, f"the file system is damaged; {_DISK}"),
    errno.EREMOTEIO: (errors.UnavailableError, f"the disk reports errors; {_DISK}"),
    errno.ESTALE: (errors.UnavailableError, "the network file system has changed; mount it again"),
    errno.ENOTCONN: (
        errors.UnavailableError,
        ("the server of this mount does not answer; mount it again"),
    ),
    errno.EHOSTDOWN: (
        errors.UnavailableError,
        ("the server of this mount does not answer; mount it again"),
    ),
    errno.EACCES: (errors.NotPermittedError, _REFUSED),
    errno.EPERM: (errors.NotPermittedError, _REFUSED),
    errno.ENODEV: (errors.WrongStateError, _MODULE),
    errno.EOPNOTSUPP: (errors.WrongStateError, _MODULE),
    errno.EPROTONOSUPPORT: (errors.WrongStateError, _MODULE),
    errno.EAFNOSUPPORT: (errors.WrongStateError, _MODULE),
    errno.ENOSYS: (errors.UnsupportedError, "the kernel is too old; run `criagent doctor`"),
    errno.ETIMEDOUT: (errors.TimedOutError, "try again"),
}
# By the system call that begins the text: some limits share a number with full disks.
_OF_CALLS: dict[str, dict[int, str]] = {
    "inotify_add_watch": {errno.ENOSPC: "raise the sysctl fs.inotify.max_user_watches"},
    "inotify_init1": {errno.EMFILE: "raise the sysctl fs.inotify.max_user_instances"},
    "mount": {errno.ENOSPC: f"{_FULL}, or raise the sysctl fs.mount-max"},
    "move_mount": {errno.ENOSPC: "raise the sysctl fs.mount-max"},
    "open_tree": {errno.ENOSPC: "raise the sysctl fs.mount-max"},
    "unshare": {errno.ENOSPC: "raise the sysctls user.max_*_namespaces"},
}


def translated(error: OSError) -> errors.AgentError | None:
    """The error that a caller sees for `error`; None for a library's own subclass of OSError.

    A library's number need not be the kernel's (ssl.SSLError counts from 1), and its text may not
    be for callers.
    """
    if type(error).__module__ != "builtins":
        return None
    if isinstance(error, TimeoutError) and error.errno is None:
        return errors.TimedOutError(str(error)) if str(error) else None
    kind, cure = _CLASSES.get(error.errno or 0, (errors.AgentError, ""))
    call = (error.strerror or "").partition(":")[0]
    cure = _OF_CALLS.get(call, {}).get(error.errno or 0, cure)
    return kind(f"{described(error)}; {cure}" if cure else described(error))


# These are faults of the node, whatever was requested.
_OF_THE_NODE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EROFS,
        errno.EIO,
        errno.EUCLEAN,
        errno.EREMOTEIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
    }
)


def of_the_agent(error: OSError) -> bool:
    """Whether the agent lacks what any file takes: such an error says nothing about the file."""
    return error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def blamed(error: errors.AgentError) -> errors.AgentError:
    """`error`, or one of another class when its cause is an error that only the node can explain.

    Many callers report that a path, a profile or a device of the request is unusable; with a
    failing disk or without a free descriptor that is not the requester's fault.
    """
    cause = error.__cause__ or error.__context__
    if type(error) not in {errors.AgentError, errors.InvalidRequestError}:
        return error
    if not isinstance(cause, OSError) or cause.errno not in _OF_THE_NODE:
        return error
    kind, cure = _CLASSES[cause.errno]
    return kind(f"{error}; {cure}")


@contextmanager
def about(name: object) -> Iterator[None]:
    """Add `name` to errors of the block that name no object, such as those of write(2)."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = name
        raise


def described(error: OSError) -> str:
    """Cause and object of `error`, without Python's "[Errno 28]"."""
    if error.strerror is None:
        return str(error)
    names = [_name(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([error.strerror, " -> ".join(names)]) if names else error.strerror


def _name(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes) else str(name)
