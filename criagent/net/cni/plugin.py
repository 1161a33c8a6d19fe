# SPDX-License-Identifier: Apache-2.0
"""One run of a CNI plugin: a child process in its own session, with a time limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from criagent.base.errors import AgentError, TimedOutError
from criagent.net.cni.result import LIMIT_BYTES
from criagent.process.child import Ended, Options, run


async def run_plugin(
    program: Path, environment: Mapping[str, str], request: Mapping[str, Any], limit_s: float
) -> Ended:
    """The end of `program`, which gets `request` as JSON on its stdin.

    When it returns or raises, even by cancellation, the plugin has ended; after a time-out or a
    cancellation so has its whole process group. Raises TimedOutError after `limit_s`, AgentError
    when it cannot be executed or prints more than LIMIT_BYTES.
    """
    try:
        ended = await run(
            [program],
            stdin=json.dumps(request).encode(),
            limit_s=limit_s,
            keep=LIMIT_BYTES + 1,
            options=Options(env=environment, new_session=True),
        )
    except TimeoutError:
        raise TimedOutError(
            f'CNI plugin "{program.name}" did not end within {limit_s:g} s and was killed'
        ) from None
    except OSError as exc:
        raise AgentError(f"CNI plugin {program} cannot be executed: {exc.strerror}") from None
    if len(ended.stdout) > LIMIT_BYTES:
        raise AgentError(f'CNI plugin "{program.name}" printed more than {LIMIT_BYTES} bytes')
    return ended
