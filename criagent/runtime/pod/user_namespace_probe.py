# SPDX-License-Identifier: Apache-2.0
"""Whether pods can have user namespaces here: tried once at start, with real ones."""

from __future__ import annotations

import contextlib
import os
import shutil
from concurrent.futures import Executor
from pathlib import Path

from criagent.base.aio import run_in
from criagent.base.errors import AgentError
from criagent.kernel import idmap, mount
from criagent.model.common import IdMapping, NamespaceMode, UserNamespace
from criagent.runtime.pod.user_namespaces import namespace_maker

_HOST_ID = 65536
_IDS = (IdMapping(container_id=0, host_id=_HOST_ID, length=65536),)
_TRIED = UserNamespace(mode=NamespaceMode.POD, uids=_IDS, gids=_IDS)


async def probe_user_namespaces(lower: Path, scratch: Path, fs: Executor) -> str:
    """ "" when they work with layers on the file system of `lower`, otherwise the reason.

    `lower` is a directory of root, which is only read. `scratch` must not exist, and does not
    afterwards.
    """
    try:
        async with namespace_maker(_TRIED) as pid:
            return await run_in(fs, _try_overlay, lower, scratch, Path(f"/proc/{pid}/ns/user"))
    except (AgentError, OSError) as exc:
        return str(exc)


def _try_overlay(lower: Path, scratch: Path, pin: Path) -> str:
    _clear(scratch)
    mapped, empty, merged = (scratch / name for name in ("mapped", "empty", "merged"))
    try:
        for directory in (mapped, empty, merged):
            directory.mkdir(parents=True)
        userns = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with idmap.idmapped(lower, userns, readonly=True) as tree:
                idmap.attach(tree, mapped)
        except OSError as exc:
            return f"the file system of {lower} does not support id mapping: {exc.strerror}"
        finally:
            os.close(userns)
        mount.overlay([mapped, empty], None, None, merged)
        if merged.stat().st_uid != _HOST_ID:
            return "overlay of this kernel does not support layers with mapped ids"
    except OSError as exc:
        return f"an overlay of a layer with mapped ids cannot be mounted: {exc}"
    finally:
        _clear(scratch)
    return ""


def _clear(scratch: Path) -> None:
    for name in ("merged", "mapped"):
        mount.detach(scratch / name)
        with contextlib.suppress(FileNotFoundError):
            (scratch / name).rmdir()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(scratch)
