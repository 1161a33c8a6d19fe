# SPDX-License-Identifier: Apache-2.0
"""GetContainerEvents from outside: order, what a status says then, slow readers, ends."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api, container, pod
from tests.support.node_state import agent_facts
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

Event = api.ContainerEventResponse
CREATED, STARTED, STOPPED, DELETED = KINDS = (
    api.CONTAINER_CREATED_EVENT,
    api.CONTAINER_STARTED_EVENT,
    api.CONTAINER_STOPPED_EVENT,
    api.CONTAINER_DELETED_EVENT,
)


class Subscriber:
    """Reads events in a thread into `seen`; `code` and `words` are how the stream ended."""

    def __init__(self, cri: Cri) -> None:
        self.seen: queue.Queue[Event] = queue.Queue()
        self.code = grpc.StatusCode.OK
        self.words = ""
        self.call = cri.runtime.GetContainerEvents(api.GetEventsRequest())
        self.call.initial_metadata()  # the agent has the subscription now
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ended(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def next(self) -> Event:
        return self.seen.get(timeout=20)

    def until_deleted(self, object_id: str) -> list[Event]:
        """Every event up to the end of the object."""
        found = [self.next()]
        while (found[-1].container_id, found[-1].container_event_type) != (object_id, DELETED):
            found.append(self.next())
        return found

    def _read(self) -> None:
        try:
            for event in self.call:
                self.seen.put(event)
        except grpc.RpcError as error:
            self.code, self.words = error.code(), error.details() or ""


@contextmanager
def subscribed(cri: Cri) -> Iterator[Subscriber]:
    subscriber = Subscriber(cri)
    subscriber.start()
    yield subscriber
    subscriber.call.cancel()
    subscriber.ended()


def states(event: Event) -> dict[str, int]:
    return {status.id: status.state for status in event.containers_statuses}


def test_a_life_is_told_in_order_with_the_statuses_of_the_whole_pod(pods: Pods) -> None:
    with subscribed(pods.cri) as subscriber:
        sandbox = pods.sandbox()
        other = pods.running(pod=sandbox)
        container_id = pods.running(pod=sandbox)
        pods.cri.stop(container_id)
        pods.cri.remove(container_id)
        pods.cri.remove_pod(sandbox[0])
        told = subscriber.until_deleted(sandbox[0])
    assert [e.container_event_type for e in told if e.container_id == sandbox[0]] == list(KINDS)
    mine = [event for event in told if event.container_id == container_id]
    assert [event.container_event_type for event in mine] == list(KINDS)
    running, exited = api.CONTAINER_RUNNING, api.CONTAINER_EXITED
    assert [states(event) for event in mine] == [
        {other: running, container_id: api.CONTAINER_CREATED},
        {other: running, container_id: running},
        {other: running, container_id: exited},
        {other: running},
    ]
    assert {event.pod_sandbox_status.id for event in told} == {sandbox[0]}
    assert {event.pod_sandbox_status.metadata.uid for event in told} == {sandbox[1].metadata.uid}
    assert told[-1].pod_sandbox_status.state == api.SANDBOX_NOTREADY
    stopped = mine[2].containers_statuses
    assert {s.id: (s.exit_code, s.reason) for s in stopped if s.id == container_id} == {
        container_id: (137, "Error")
    }


def test_a_pods_newest_container_comes_first(pods: Pods) -> None:
    """With EventedPLEG the kubelet takes the first of each name for the one that there is."""
    with subscribed(pods.cri) as subscriber:
        sandbox = pods.sandbox()
        container_ids = [pods.running(pod=sandbox) for _ in range(3)]
        pods.cri.remove_pod(sandbox[0])
        told = subscriber.until_deleted(sandbox[0])
    full = [event.containers_statuses for event in told if len(event.containers_statuses) == 3]
    assert full
    assert all([status.id for status in statuses] == container_ids[::-1] for statuses in full)


def test_a_sandboxs_status_has_its_newest_container_first(pods: Pods) -> None:
    sandbox = pods.sandbox()
    container_ids = [pods.running(pod=sandbox) for _ in range(3)]
    request = api.PodSandboxStatusRequest(pod_sandbox_id=sandbox[0])
    answer = pods.cri.runtime.PodSandboxStatus(request, timeout=10)
    assert [status.id for status in answer.containers_statuses] == container_ids[::-1]
    assert answer.timestamp


def test_a_status_asked_for_at_an_event_is_no_older(pods: Pods) -> None:
    """What the evented PLEG relies on: the row is written before its event is told."""
    with subscribed(pods.cri) as subscriber:
        sandbox, config = pods.sandbox()
        event = subscriber.next()
        assert (event.container_id, event.container_event_type) == (sandbox, CREATED)
        assert [found.id for found in pods.cri.pods()] == [sandbox]
        assert subscriber.next().container_event_type == STARTED
        for _ in range(20):
            container_id = pods.cri.create(sandbox, container("short", ["true"]), config)
            pods.cri.start(container_id)
            assert subscriber.next().container_event_type == CREATED
            assert container_id in [found.id for found in pods.cri.containers()]
            assert subscriber.next().container_event_type == STARTED
            assert pods.cri.status(container_id).started_at
            assert subscriber.next().container_event_type == STOPPED
            assert pods.cri.status(container_id).state == api.CONTAINER_EXITED
            pods.cri.remove(container_id)
            assert subscriber.next().container_event_type == DELETED
            with pytest.raises(grpc.RpcError) as caught:
                pods.cri.status(container_id)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_times_only_go_forward_however_many_pods_there_are(pods: Pods) -> None:
    def life(number: int) -> str:
        config = pod(f"times-{number}", log_directory=str(pods.logs))
        sandbox = pods.cri.run(config)
        container_id = pods.cri.create(sandbox, container("main", ["true"]), config)
        pods.cri.start(container_id)
        pods.cri.remove_pod(sandbox)
        return sandbox

    with (
        subscribed(pods.cri) as subscriber,
        subscribed(pods.cri) as other,
        ThreadPoolExecutor(8) as threads,
    ):
        sandboxes = set(threads.map(life, range(40)))
        told, gone = [], set[str]()
        while not sandboxes <= gone:
            told.append(subscriber.next())
            if told[-1].container_event_type == DELETED:
                gone.add(told[-1].container_id)
        assert [other.next() for _ in told] == told
    times = [event.created_at for event in told]
    assert times == sorted(set(times))
    kinds = defaultdict(list)
    for event in told:
        kinds[event.container_id].append(event.container_event_type)
    assert len(kinds) == 80
    assert all(found == list(KINDS) for found in kinds.values())
    sandbox = pods.sandbox()[0]
    request = api.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
    assert pods.cri.runtime.PodSandboxStatus(request).timestamp > times[-1]


@pytest.mark.timeout(180)
def test_a_reader_that_does_not_keep_up_is_let_go_and_told_so(pods: Pods) -> None:
    with subscribed(pods.cri) as quick:
        slow = Subscriber(pods.cri)
        before = agent_facts()["rss_kb"]

        def life(number: int) -> None:
            config = pod(f"many-{number}", annotations={"large": "x" * 10_000})
            config.linux.security_context.namespace_options.network = api.NODE
            pods.cri.remove_pod(pods.cri.run(config))

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(life, range(400)))
        told = [quick.next() for _ in range(1600)]
        assert agent_facts()["rss_kb"] - before < 60_000
        slow.start()
        slow.ended()
        got = [slow.seen.get_nowait() for _ in range(slow.seen.qsize())]
    assert slow.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "list, then subscribe again" in slow.words
    assert got == told[: len(got)]  # nothing was left out before the end
    assert len(got) < 600
    assert quick.code is grpc.StatusCode.CANCELLED  # by us
    with subscribed(pods.cri) as again:
        sandbox, _ = pods.sandbox()
        assert again.next().container_id == sandbox


def test_readers_that_leave_leave_nothing(pods: Pods) -> None:
    def come_and_go() -> None:
        calls = [pods.cri.runtime.GetContainerEvents(api.GetEventsRequest()) for _ in range(50)]
        for call in calls:
            call.initial_metadata()
            call.cancel()

    come_and_go()
    before = agent_facts()
    for _ in range(10):
        come_and_go()
    until(lambda: agent_facts()["fds"] <= before["fds"] + 2, "descriptors closed")
    until(lambda: agent_facts()["threads"] <= before["threads"] + 2, "threads ended")
    pods.sandbox()


def test_the_agents_end_ends_the_stream_well_and_at_once(pods: Pods) -> None:
    with subscribed(pods.cri) as subscriber:
        start = time.monotonic()
        agent.stop()
        assert time.monotonic() - start < 10
        subscriber.ended()
        assert subscriber.code is grpc.StatusCode.OK
    pods.cri = agent.start()


def test_events_go_on_for_containers_of_a_former_agent(pods: Pods) -> None:
    container_id = pods.running("sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.05; done")
    agent.stop()
    pods.cri = agent.start()
    with subscribed(pods.cri) as subscriber:
        pods.cri.stop(container_id, 10)
        event = subscriber.next()
        assert (event.container_id, event.container_event_type) == (container_id, STOPPED)
        (status,) = event.containers_statuses
        assert (status.exit_code, status.reason) == (4, "Error")
