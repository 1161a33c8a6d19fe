# SPDX-License-Identifier: Apache-2.0
"""Whether pods can have user namespaces here: tried once at start, with real ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from criagent.base.errors import AgentError
from criagent.image.snapshots.driver import MappedIds
from criagent.model.common import IdMapping, NamespaceMode, UserNamespace
from criagent.runtime.pod.user_namespaces import namespace_maker

_HOST_ID = 65536
_IDS = (IdMapping(container_id=0, host_id=_HOST_ID, length=65536),)
_TRIED = UserNamespace(mode=NamespaceMode.POD, uids=_IDS, gids=_IDS)


async def probe_user_namespaces(
    problem: Callable[[MappedIds], Awaitable[str]], scratch: Path
) -> str:
    """ "" when they work with the layers of this node, otherwise the reason.

    `problem` tries a mount for the ids it is given. `scratch` must not exist, and does not
    afterwards.
    """
    try:
        async with namespace_maker(_TRIED) as pid:
            userns = Path(f"/proc/{pid}/ns/user")
            ids = MappedIds(userns=userns, uid=_HOST_ID, gid=_HOST_ID, lower_layers=scratch)
            return await problem(ids)
    except (AgentError, OSError) as exc:
        return str(exc)
