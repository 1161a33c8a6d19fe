"""Whether pods can have user namespaces here: tried once at start, by making what one needs."""

from __future__ import annotations

import contextlib
import os
import shutil
from concurrent.futures import Executor
from pathlib import Path

from criagent.aio import run_in
from criagent.errors import AgentError
from criagent.kernel import idmap, mount
from criagent.model import IdMapping, NamespaceMode, UserNamespace
from criagent.runtime.user_namespaces import namespace_maker

_HOST_ID = 65536
_IDS = (IdMapping(container_id=0, host_id=_HOST_ID, length=65536),)
_TRIED = UserNamespace(mode=NamespaceMode.POD, uids=_IDS, gids=_IDS)


async def probe_user_namespaces(scratch: Path, fs: Executor) -> str:
    """ "" when they work with layers on the file system of `scratch`, or else what is wrong.

    `scratch` is a directory of the caller's choice that does not exist, and does not afterwards.
    """
    try:
        async with namespace_maker(_TRIED) as pid:
            return await run_in(fs, _try_overlay, scratch, Path(f"/proc/{pid}/ns/user"))
    except (AgentError, OSError) as exc:
        return str(exc)


def _try_overlay(scratch: Path, pin: Path) -> str:
    _clear(scratch)
    lower, upper, mapped, merged = (scratch / name for name in ("lower", "fs", "mapped", "merged"))
    try:
        for directory in (lower, upper, scratch / "work", mapped, merged):
            directory.mkdir(parents=True)
        (lower / "file").touch()
        userns = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with idmap.idmapped(lower, userns, readonly=True) as tree:
                idmap.attach(tree, mapped)
        except OSError as exc:
            return f"the file system of {scratch} has no idmapped mounts: {exc.strerror}"
        finally:
            os.close(userns)
        mount.overlay([mapped], upper, scratch / "work", merged)
        if (merged / "file").stat().st_uid != _HOST_ID:
            return "this kernel's overlay does not map the ids of lower layers"
        (merged / "written").touch()
    except OSError as exc:
        return f"no overlay of an idmapped layer: {exc}"
    finally:
        _clear(scratch)
    return ""


def _clear(scratch: Path) -> None:
    for name in ("merged", "mapped"):
        mount.detach(scratch / name)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(scratch)
