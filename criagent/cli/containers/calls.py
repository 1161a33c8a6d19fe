# SPDX-License-Identifier: Apache-2.0
"""One command against the CRI: its stubs, its failures as text, its messages as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from criagent.base.text import printable
from criagent.cli.agent import UnreachableError, connection, failed

if TYPE_CHECKING:
    import grpc

    from criagent._proto import api_pb2_grpc

LIMIT_S = 30.0


class CommandError(Exception):
    """The command cannot be carried out; the text names the object and the remedy."""


class Calls:
    """The stubs of one connection."""

    def __init__(self, channel: grpc.Channel) -> None:
        from criagent._proto import api_pb2_grpc

        self.runtime: api_pb2_grpc.RuntimeServiceStub = api_pb2_grpc.RuntimeServiceStub(channel)
        self.images: api_pb2_grpc.ImageServiceStub = api_pb2_grpc.ImageServiceStub(channel)


def with_agent(chosen: argparse.Namespace, action: Callable[[Calls], int]) -> int:
    """The status of `action`; 1 for a failure and 3 for an agent that cannot be reached."""
    import grpc

    try:
        with connection(chosen) as channel:
            return action(Calls(channel))
    except (grpc.RpcError, UnreachableError) as error:
        return failed(error)
    except CommandError as error:
        print(printable(str(error)), file=sys.stderr)
        return 1


def document(message: Any) -> Any:
    """A message as crictl prints it: protobuf's JSON, with the fields that have no value."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, always_print_fields_with_no_presence=True)
