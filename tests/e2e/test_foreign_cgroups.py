# SPDX-License-Identifier: Apache-2.0
"""Handlers that do not put init where they were asked to: refused, and nobody else is harmed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api, container
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

CGROUPS = Path("/sys/fs/cgroup")
# A runtime that honours the specification, and a stranger who moves init afterwards.
MOVED = """#!/bin/sh
/usr/bin/crun "$@" || exit
for word; do
    [ "$last" != --pid-file ] || file=$word
    last=$word
done
case " $* " in
    *" create "*|*" run "*)
        target="/sys/fs/cgroup$(printf "TARGET" "$last")"
        mkdir -p "$target"
        cat "$file" > "$target/cgroup.procs"
        ;;
esac
"""
PROGRAMS = {
    "no cgroups at all": '#!/bin/sh\nexec /usr/bin/crun --cgroup-manager=disabled "$@"\n',
    "into the parent": MOVED.replace("TARGET", "/strays"),
    "into one of a longer name": MOVED.replace("TARGET", "/cri/%sx"),
    "into one of its name elsewhere": MOVED.replace("TARGET", "/strays/%s"),
}


@pytest.fixture(params=list(PROGRAMS.values()), ids=list(PROGRAMS))
def loose(pods: Pods, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pods]:
    """An agent with such a handler called loose, beside the usual ones."""
    program = tmp_path / "loose"
    program.write_text(request.param)
    program.chmod(0o755)
    agent.stop()
    pods.cri = agent.start(
        "[runtime.handlers]\n"
        'crun = { path = "/usr/bin/crun" }\n'
        f'loose = {{ path = "{program}" }}\n'
    )
    yield pods
    agent.stop()
    pods.cri = agent.start()
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    shutil.rmtree("/run/criagent/runtime/loose", ignore_errors=True)
    for left in (*(CGROUPS / "strays").glob("*"), CGROUPS / "strays", *CGROUPS.glob("cri/*x")):
        if left.is_dir():
            left.rmdir()


def refusal(error: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return str(error.value.details())


def test_a_container_outside_of_its_cgroup_is_refused_and_undone(loose: Pods) -> None:
    bystander = loose.running()
    config = loose.config()
    sandbox = loose.cri.run(config, handler="loose")
    with pytest.raises(grpc.RpcError) as caught:
        loose.cri.create(sandbox, container("c", ["sleep", "73737"]), config)
    text = refusal(caught)
    assert 'handler "loose"' in text
    assert "--cgroup-manager=disabled" in text
    assert "linux.cgroupsPath" in text
    until(lambda: not running("73737"), "the end of what was created")
    loose.cri.remove_pod(sandbox)
    assert agent.running()
    assert loose.cri.status(bystander).state == api.CONTAINER_RUNNING
    assert loose.cri.exec(bystander, "echo", "well").stdout == b"well\n"


def test_a_shared_pid_namespace_outside_of_its_cgroup_is_refused_and_undone(
    pods: Pods, loose: Pods
) -> None:
    agent.stop()
    text = Path("/etc/criagent/config.d/test.toml").read_text()
    cri = loose.cri = agent.start(f'runtime.default_handler = "loose"\n{text}')
    config = loose.config()
    config.linux.security_context.namespace_options.pid = api.POD
    with pytest.raises(grpc.RpcError) as caught:
        cri.run(config, handler="crun")
    assert 'handler "loose"' in refusal(caught)
    assert cri.pods() == []
    until(lambda: not running("catatonit\0-P"), "the end of the holder")


def running(words: str) -> bool:
    """Whether a process with these words in its command line lives."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in file.read_bytes().decode(errors="replace"):
                return True
        except OSError:
            continue
    return False


def test_a_handler_that_places_init_in_a_child_of_its_cgroup_is_taken(
    pods: Pods, tmp_path: Path
) -> None:
    program = tmp_path / "nested"
    program.write_text(MOVED.replace("TARGET", "/cri/%s/init"))
    program.chmod(0o755)
    agent.stop()
    pods.cri = agent.start(f'runtime.handlers.crun = {{ path = "{program}" }}\n')
    try:
        container_id = pods.running()
        pods.cri.stop(container_id)
        pods.cri.remove(container_id)
        assert not (CGROUPS / "cri" / container_id).exists()
    finally:
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        agent.stop()
        pods.cri = Cri() if agent.running() else agent.start()
