# SPDX-License-Identifier: Apache-2.0
"""Make the running agent read its configuration again, as `systemctl reload criagent` does.

Prints what changed and what needs a restart. A configuration with a wrong key changes nothing.
"""

from __future__ import annotations

import argparse

from criagent.cli.agent import UnreachableError, connection, failed
from criagent.cli.common import output_argument, show


def arguments(command: argparse.ArgumentParser) -> None:
    """The output format."""
    output_argument(command)


def run(chosen: argparse.Namespace) -> int:
    """Status 1 when the configuration was refused, 3 when the agent cannot be reached."""
    import grpc

    from criagent._proto import admin_pb2, admin_pb2_grpc

    try:
        with connection(chosen) as channel:
            request = admin_pb2.ReloadRequest()
            answer = admin_pb2_grpc.AdminStub(channel).Reload(request, timeout=60)
    except (grpc.RpcError, UnreachableError) as error:
        return failed(error)
    changed, need_restart = list(answer.changed), list(answer.need_restart)
    if chosen.output == "json":
        show({"changed": changed, "need_restart": need_restart})
        return 0
    print(f"changed: {', '.join(changed) or 'nothing'}")
    if need_restart:
        print(f"needs `systemctl restart criagent`: {', '.join(need_restart)}")
    return 0
