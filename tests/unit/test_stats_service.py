# SPDX-License-Identifier: Apache-2.0
"""Lists that are serialized in parts."""

from __future__ import annotations

import pytest

from criagent._proto import api_pb2
from criagent.cri.listing import framed


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384, 2_200_000])
def test_parts_make_the_message_of_their_field(length: int) -> None:
    parts = [
        api_pb2.PodSandboxMetrics(pod_sandbox_id="x" * length),
        api_pb2.PodSandboxMetrics(pod_sandbox_id="y"),
    ]
    whole = b"".join(framed(part.SerializeToString()) for part in parts)
    assert list(api_pb2.ListPodSandboxMetricsResponse.FromString(whole).pod_metrics) == parts


def test_the_field_is_number_one_of_every_list_that_is_made_so() -> None:
    for message, field in (
        (api_pb2.ContainerStatsResponse, "stats"),
        (api_pb2.PodSandboxStatsResponse, "stats"),
        (api_pb2.ListContainerStatsResponse, "stats"),
        (api_pb2.StreamContainerStatsResponse, "container_stats"),
        (api_pb2.ListPodSandboxStatsResponse, "stats"),
        (api_pb2.StreamPodSandboxStatsResponse, "pod_sandbox_stats"),
        (api_pb2.ListPodSandboxMetricsResponse, "pod_metrics"),
        (api_pb2.StreamPodSandboxMetricsResponse, "pod_sandbox_metrics"),
    ):
        assert message.DESCRIPTOR.fields_by_name[field].number == 1
