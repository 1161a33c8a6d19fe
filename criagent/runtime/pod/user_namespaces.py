# SPDX-License-Identifier: Apache-2.0
"""User namespaces of pods (KEP-127): what may be asked for, and the process that makes one.

A thread of a process with several cannot make a user namespace, so a child does: unshare(1), which
becomes cat(1) and answers when everything is made. It ends with the daemon, whatever ends that.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from criagent.base.errors import AgentError, ExhaustedError, TimedOutError
from criagent.image.snapshots.driver import MappedIds
from criagent.kernel.namespaces import write_id_maps
from criagent.model.common import (
    UserNamespace,
)
from criagent.model.sandbox import Sandbox
from criagent.process.child import Pipes, killed_on_exit, spawn
from criagent.process.pipe_ends import PipeWriter, up_to
from criagent.runtime.node.paths import RuntimePaths

_LIMIT_S = 10.0
_COMMAND = ("unshare", "--user", "--net", "--ipc", "--uts", "cat")


def mapped_ids(paths: RuntimePaths, sandbox: Sandbox, container_id: str) -> MappedIds | None:
    """What mounting layers for a container of `sandbox` needs; None without a user namespace."""
    userns = sandbox.spec.security.namespaces.pod_userns
    if userns is None:
        return None
    return MappedIds(
        userns=paths.userns(sandbox.id),
        uid=userns.root_uid,
        gid=userns.root_gid,
        lower_layers=paths.lower_layers(container_id),
        length=min(userns.uids[0].length, userns.gids[0].length),
    )


@asynccontextmanager
async def namespace_maker(userns: UserNamespace) -> AsyncIterator[int]:
    """Pid of a process with its own user, net, ipc and uts namespaces; dead after the block.

    Ids are mapped as in `userns`. Raises AgentError with the reason of a failure, TimedOutError.
    """
    with Pipes() as pipes:
        question = pipes.input(PipeWriter)
        answer, errors = pipes.output(up_to(4096)), pipes.errors(up_to(4096))
        try:
            child = spawn(_COMMAND, pipes)
        except OSError as exc:
            raise AgentError(
                f"user namespace: unshare cannot be run: {exc.strerror}; install util-linux"
            ) from exc
        async with killed_on_exit(child):
            with contextlib.suppress(BrokenPipeError):  # unshare has failed; its errors say why
                question.write(b"\n")
            try:
                async with asyncio.timeout(_LIMIT_S):
                    line = await answer.line()
            except TimeoutError:
                raise TimedOutError(f"a user namespace took over {_LIMIT_S:.0f} s") from None
            if line is None:
                raise _failure(errors.taken().decode(errors="replace").strip()[-200:])
            try:
                write_id_maps(child.pid, userns.uids, userns.gids)
            except OSError as exc:
                raise AgentError(
                    f"user namespace: the ids {userns.uids[0]} and {userns.gids[0]} cannot be "
                    f"mapped here: {exc.strerror}"
                ) from exc
            yield child.pid


def _failure(output: str) -> AgentError:
    text = f"user namespace: {output or 'unshare died'}"
    if os.strerror(errno.ENOSPC) in output:  # man 7 namespaces, "The /proc/sys/user directory"
        return ExhaustedError(f"{text}; raise the sysctls user.max_*_namespaces")
    return AgentError(text)
