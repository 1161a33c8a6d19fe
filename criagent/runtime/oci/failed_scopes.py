# SPDX-License-Identifier: Apache-2.0
"""Failed scopes: systemd keeps such a unit until it is told to forget it.

crun and runc do so when they delete a container. But one that was killed while systemd created the
scope leaves a failed unit ("No PIDs left to attach"), and no state that could be deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from criagent.model.common import ID_PATTERN
from criagent.process.child import run
from criagent.runtime.node.cgroup_names import SCOPE_PREFIX

# systemd has a file here for every unit created at run time, for as long as it knows it.
_TRANSIENT = Path("/run/systemd/transient")
_LIMIT_S = 10.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def known_scopes() -> list[str]:
    """Ids of containers and holders whose scope systemd knows."""
    start, end = f"{SCOPE_PREFIX}-", ".scope"
    names = [path.name for path in _TRANSIENT.glob(f"{start}*{end}")]
    ids = [name.removeprefix(start).removesuffix(end) for name in names]
    return [found for found in ids if ID_PATTERN.fullmatch(found)]


async def forget_orphans(known: Callable[[str], bool]) -> None:
    """Forget failed scopes of ids that are not `known`."""
    await forget([found for found in known_scopes() if not known(found)])


async def forget(ids: Sequence[str]) -> None:
    """Forget the failed scopes of these ids; others are left alone. Never raises."""
    names = [f"{SCOPE_PREFIX}-{found}.scope" for found in ids]
    names = [name for name in names if (_TRANSIENT / name).exists()]
    if not names:
        return
    try:
        code = (await run(["systemctl", "reset-failed", *names], limit_s=_LIMIT_S)).status
    except (OSError, TimeoutError) as failure:
        log.warning("failed_scopes_not_reset", scopes=names, error=repr(failure))
        return
    if code:  # one of them has gone meanwhile, or systemd refuses
        log.info("failed_scopes_not_reset", scopes=names, code=code)
    else:
        log.info("failed_scopes_reset", scopes=names)
