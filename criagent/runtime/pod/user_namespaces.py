"""User namespaces of pods (KEP-127): the process that creates one, and facts for mounts.

A thread of a process with several cannot create a user namespace, so a child does: unshare(1),
which becomes cat(1) and answers when all are created. It ends with the daemon, however that ends.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from criagent.base.errors import AgentError, ExhaustedError, TimedOutError
from criagent.image.snapshots.overlay import MappedIds
from criagent.kernel.namespaces import write_id_maps
from criagent.model.common import (
    UserNamespace,
)
from criagent.model.sandbox import Sandbox
from criagent.process.child import PipeReader, killed_on_exit, spawn
from criagent.runtime.node.paths import RuntimePaths

_LIMIT_S = 10.0
_COMMAND = ("unshare", "--user", "--net", "--ipc", "--uts", "cat")


def mapped_ids(paths: RuntimePaths, sandbox: Sandbox, container_id: str) -> MappedIds | None:
    """Facts for mounting layers for a container of `sandbox`; None without a user namespace."""
    userns = sandbox.spec.security.namespaces.pod_userns
    if userns is None:
        return None
    return MappedIds(
        userns=paths.userns(sandbox.id),
        uid=userns.root_uid,
        gid=userns.root_gid,
        lower_layers=paths.lowers(container_id),
    )


@asynccontextmanager
async def namespace_maker(userns: UserNamespace) -> AsyncIterator[int]:
    """Pid of a process with its own user, net, ipc and uts namespaces; dead after the block.

    Ids are mapped as in `userns`. Raises AgentError with the reason of a failure, TimedOutError.
    """
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    answer, errors = PipeReader(out_read, limit=4096), PipeReader(err_read, limit=4096)
    try:
        try:
            child = spawn(_COMMAND, stdin=in_read, stdout=out_write, stderr=err_write)
        except OSError as exc:
            raise AgentError(
                f"user namespace: unshare cannot be run: {exc.strerror}; install util-linux"
            ) from exc
        finally:
            for fd in (in_read, out_write, err_write):
                os.close(fd)
        async with killed_on_exit(child):
            os.write(in_write, b"\n")
            try:
                async with asyncio.timeout(_LIMIT_S):
                    line = await answer.line()
            except TimeoutError:
                raise TimedOutError(
                    f"creating a user namespace took over {_LIMIT_S:.0f} s"
                ) from None
            if line is None:
                errors.drain()
                raise _failure(bytes(errors.data).decode(errors="replace").strip()[-200:])
            try:
                write_id_maps(child.pid, userns.uids, userns.gids)
            except OSError as exc:
                raise AgentError(
                    f"user namespace: the ids {userns.uids[0]} and {userns.gids[0]} cannot be "
                    f"mapped on this node: {exc.strerror}"
                ) from exc
            yield child.pid
    finally:
        os.close(in_write)
        answer.close()
        errors.close()


def _failure(output: str) -> AgentError:
    text = f"user namespace: {output or 'unshare died'}"
    if os.strerror(errno.ENOSPC) in output:  # man 7 namespaces, "The /proc/sys/user directory"
        return ExhaustedError(f"{text}; raise the sysctls user.max_*_namespaces")
    return AgentError(text)
