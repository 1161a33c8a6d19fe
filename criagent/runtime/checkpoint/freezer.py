# SPDX-License-Identifier: Apache-2.0
"""Stops a container's processes by the cgroup freezer, and lets them go on.

SIGKILL ends frozen processes, so a container can be stopped at any time (kernel documentation,
cgroup-v2).
"""

from __future__ import annotations

import asyncio
import errno

from criagent.base.errors import TimedOutError, WrongStateError
from criagent.kernel import cgroupfs
from criagent.model.container import Container
from criagent.runtime.node.cgroup_names import belongs_to

_LIMIT_S = 10.0
_FIRST_LOOK_S, _LAST_LOOK_S = 0.001, 0.1


async def freeze(container: Container) -> None:
    """Return when nothing in the container runs. `thaw` is the undo, also after an error.

    Raises WrongStateError when it has no cgroup of its own, or has ended; TimedOutError.
    """
    if not belongs_to(container.cgroup, container.id):
        raise WrongStateError(f"container {container.id} has no cgroup of its own; create it again")
    try:
        cgroupfs.freeze(container.cgroup, frozen=True)
    except FileNotFoundError:
        raise WrongStateError(f"container {container.id} has ended") from None
    try:
        async with asyncio.timeout(_LIMIT_S):
            pause_s = _FIRST_LOOK_S
            while not cgroupfs.is_frozen(container.cgroup):
                if not cgroupfs.populated(container.cgroup):
                    raise WrongStateError(f"container {container.id} has ended")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_LOOK_S)
    except TimeoutError:
        raise TimedOutError(
            f"the processes of container {container.id} did not stop within {_LIMIT_S:.0f} s; one "
            "of them may hang in the kernel, for example on an unreachable network file system"
        ) from None


def thaw(container: Container) -> None:
    """Let the container's processes go on; idempotent, fine when it has ended. Raises OSError."""
    if belongs_to(container.cgroup, container.id):
        try:
            cgroupfs.freeze(container.cgroup, frozen=False)
        except OSError as exc:
            if exc.errno not in {errno.ENOENT, errno.ENODEV}:  # the container has ended
                raise
