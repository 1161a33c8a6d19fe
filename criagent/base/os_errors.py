"""Errors of the kernel as errors of the agent: what failed, on which object, and the cure.

Rooms let an OSError pass when they have nothing to add; the boundary asks here what a caller gets.
Classes differ from absl's ErrnoToStatusCode where the CRI gives a status a meaning of its own: a
missing file of the node is not NOT_FOUND, which the kubelet reads as "the container is gone".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from criagent.base import errors

_FULL = "free space and inodes there"
_DISK = "see dmesg, and repair or remount it"
_REFUSED = (
    "the agent lacks a capability, or a security module (AppArmor, SELinux, seccomp) refuses; run "
    "`criagent doctor` and see dmesg"
)
_MODULE = (
    "the kernel lacks this feature or its module is not loaded (veth, bridge, overlay, nf_tables); "
    "load it with modprobe, and run `criagent doctor`"
)
_PROCESSES = (
    "a limit of processes is reached; see TasksMax of the criagent unit, kernel.pid_max and "
    "kernel.threads-max"
)

_CLASSES: dict[int, tuple[type[errors.AgentError], str]] = {
    errno.ENOSPC: (errors.ExhaustedError, _FULL),
    errno.EDQUOT: (errors.ExhaustedError, "the quota there is used up; free space or raise it"),
    errno.EMFILE: (errors.ExhaustedError, "raise LimitNOFILE of the criagent unit"),
    errno.ENFILE: (errors.ExhaustedError, "raise the sysctl fs.file-max"),
    errno.ENOMEM: (errors.ExhaustedError, "free memory of the node"),
    errno.ENOBUFS: (errors.ExhaustedError, "free memory of the node"),
    errno.EAGAIN: (errors.ExhaustedError, _PROCESSES),
    errno.EROFS: (errors.UnavailableError, f"the file system is read-only; {_DISK}"),
    errno.EIO: (errors.UnavailableError, f"the disk fails; {_DISK}"),
    errno.EUCLEAN: (errors.UnavailableError, f"the file system is damaged; {_DISK}"),
    errno.EREMOTEIO: (errors.UnavailableError, f"the disk fails; {_DISK}"),
    errno.ESTALE: (errors.UnavailableError, "the network file system has changed; mount it again"),
    errno.ENOTCONN: (errors.UnavailableError, "the server of this mount is gone; mount it again"),
    errno.EHOSTDOWN: (errors.UnavailableError, "the server of this mount is gone; mount it again"),
    errno.EACCES: (errors.NotPermittedError, _REFUSED),
    errno.EPERM: (errors.NotPermittedError, _REFUSED),
    errno.ENODEV: (errors.WrongStateError, _MODULE),
    errno.EOPNOTSUPP: (errors.WrongStateError, _MODULE),
    errno.EPROTONOSUPPORT: (errors.WrongStateError, _MODULE),
    errno.EAFNOSUPPORT: (errors.WrongStateError, _MODULE),
    errno.ENOSYS: (errors.UnsupportedError, "the kernel is too old; run `criagent doctor`"),
    errno.ETIMEDOUT: (errors.TimedOutError, "try again"),
}
# By the system call that a text begins with: some limits share a number with full disks.
_OF_CALLS: dict[str, dict[int, str]] = {
    "inotify_add_watch": {errno.ENOSPC: "raise the sysctl fs.inotify.max_user_watches"},
    "inotify_init1": {errno.EMFILE: "raise the sysctl fs.inotify.max_user_instances"},
    "mount": {errno.ENOSPC: f"{_FULL}, or raise the sysctl fs.mount-max"},
    "move_mount": {errno.ENOSPC: "raise the sysctl fs.mount-max"},
    "open_tree": {errno.ENOSPC: "raise the sysctl fs.mount-max"},
    "unshare": {errno.ENOSPC: "raise the sysctls user.max_*_namespaces"},
}


def translated(error: OSError) -> errors.AgentError | None:
    """What a caller is given for `error`; None for a library's own kind of OSError.

    A library's number need not be the kernel's (ssl.SSLError counts from 1), and its text need not
    be for strangers.
    """
    if type(error).__module__ != "builtins":
        return None
    if isinstance(error, TimeoutError) and error.errno is None:
        return errors.TimedOutError(str(error)) if str(error) else None
    kind, cure = _CLASSES.get(error.errno or 0, (errors.AgentError, ""))
    call = (error.strerror or "").partition(":")[0]
    cure = _OF_CALLS.get(call, {}).get(error.errno or 0, cure)
    return kind(f"{described(error)}; {cure}" if cure else described(error))


# The node is at fault with these whatever was asked for.
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


def blamed(error: errors.AgentError) -> errors.AgentError:
    """`error`, or one of another class when it was made of an error that only the node explains.

    Many a room says that a path, a profile or a device of the request cannot be used; with a disk
    that fails or without a free descriptor that is not the caller's fault.
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
    """Give errors of the block that name no object, as those of write(2), `name` for one."""
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
