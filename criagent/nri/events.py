# SPDX-License-Identifier: Apache-2.0
"""The events that plugins subscribe to, and the calls that carry them."""

from __future__ import annotations

import dataclasses

from google.protobuf.message import Message

from criagent._proto import nri_pb2


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One event. A plugin before NRI 0.12 gets those with `by_state_change` by StateChange."""

    number: nri_pb2.Event
    method: str
    answer: type[Message] = nri_pb2.Empty
    by_state_change: bool = False

    @property
    def bit(self) -> int:
        """Its bit in the mask of a subscription."""
        return 1 << (self.number - 1)


RUN_POD = Event(nri_pb2.RUN_POD_SANDBOX, "RunPodSandbox", by_state_change=True)
UPDATE_POD = Event(nri_pb2.UPDATE_POD_SANDBOX, "UpdatePodSandbox")
POST_UPDATE_POD = Event(
    nri_pb2.POST_UPDATE_POD_SANDBOX, "PostUpdatePodSandbox", by_state_change=True
)
STOP_POD = Event(nri_pb2.STOP_POD_SANDBOX, "StopPodSandbox", by_state_change=True)
REMOVE_POD = Event(nri_pb2.REMOVE_POD_SANDBOX, "RemovePodSandbox", by_state_change=True)
CREATE = Event(nri_pb2.CREATE_CONTAINER, "CreateContainer", nri_pb2.CreateContainerResponse)
POST_CREATE = Event(nri_pb2.POST_CREATE_CONTAINER, "PostCreateContainer", by_state_change=True)
START = Event(nri_pb2.START_CONTAINER, "StartContainer", by_state_change=True)
POST_START = Event(nri_pb2.POST_START_CONTAINER, "PostStartContainer", by_state_change=True)
UPDATE = Event(nri_pb2.UPDATE_CONTAINER, "UpdateContainer", nri_pb2.UpdateContainerResponse)
POST_UPDATE = Event(nri_pb2.POST_UPDATE_CONTAINER, "PostUpdateContainer", by_state_change=True)
STOP = Event(nri_pb2.STOP_CONTAINER, "StopContainer", nri_pb2.StopContainerResponse)
REMOVE = Event(nri_pb2.REMOVE_CONTAINER, "RemoveContainer", by_state_change=True)
VALIDATE = Event(
    nri_pb2.VALIDATE_CONTAINER_ADJUSTMENT,
    "ValidateContainerAdjustment",
    nri_pb2.ValidateContainerAdjustmentResponse,
)

ALL = (1 << (nri_pb2.LAST - 1)) - 1
