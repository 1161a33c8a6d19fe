# SPDX-License-Identifier: Apache-2.0
"""What is done on the recorded disk, and what a node must know of it after a cut at any moment.

Each step marks its beginning and its end on the disk: between the two its effect may be there or
not; after the end it must be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.cri_client import BUSYBOX, DEBIAN, Cri, api, container, pod
from tests.support.waiting import until

PRESENT, ABSENT, MAYBE = "present", "absent", "maybe"
LOGS = "/tmp/power-logs"
EXITS = {"done": 3, "again": 4}


class Life:
    """Pulls, pods, containers and their removal, each marked."""

    def __init__(self, cri: Cri, mark: Callable[[str], object]) -> None:
        """`mark` returns when the mark is where a cut leaves it."""
        self._cri = cri
        self._mark = mark
        self._ids: dict[str, str] = {}

    def live(self) -> None:
        """The whole of it; returns when the last step has ended."""
        self._pull(BUSYBOX)
        self._run("one")
        self._create("one", "done", f"exit {EXITS['done']}")
        self._start_to_its_end("done")
        self._create("one", "long", "sleep 1000000")
        self._start("long")
        self._pull(DEBIAN)
        self._run("two")
        self._create("two", "debian", "sleep 1000000", DEBIAN)
        self._start("debian")
        self._remove_container("debian")
        self._remove_pod("two")
        self._remove_image(DEBIAN)
        self._remove_container("done")
        self._pull(DEBIAN)
        self._create("one", "again", f"exit {EXITS['again']}")
        self._start_to_its_end("again")
        self._remove_pod("one", "long", "again")
        self._remove_image(BUSYBOX)
        self._remove_image(DEBIAN)

    @contextlib.contextmanager
    def _step(self, *effects: tuple[str, str]) -> Iterator[None]:
        for key, _ in effects:
            self._write(key, MAYBE)
        yield
        for key, value in effects:
            self._write(key, value)

    def _write(self, key: str, value: str) -> None:
        self._mark(json.dumps([key, value]))

    def _pull(self, image: str) -> None:
        with self._step((f"image {image}", PRESENT)):
            self._cri.pull(image)

    def _run(self, name: str) -> None:
        with self._step((f"pod {name}", PRESENT)):
            self._ids[name] = self._cri.run(pod(name, log_directory=LOGS))

    def _create(self, sandbox: str, name: str, script: str, image: str = BUSYBOX) -> None:
        with self._step((f"container {name}", PRESENT)):
            config = container(name, ["sh", "-c", script], image)
            sandbox_config = pod(sandbox, log_directory=LOGS)
            self._ids[name] = self._cri.create(self._ids[sandbox], config, sandbox_config)

    def _start(self, name: str) -> None:
        with self._step((f"start {name}", PRESENT)):
            self._cri.start(self._ids[name])

    def _start_to_its_end(self, name: str) -> None:
        self._start(name)
        with self._step((f"exit {name}", PRESENT)):
            until(lambda: self._ended(name), f"the end of {name}")

    def _ended(self, name: str) -> bool:
        status = self._cri.status(self._ids[name])
        assert status.state != api.CONTAINER_EXITED or status.exit_code == EXITS[name]
        return bool(status.state == api.CONTAINER_EXITED)

    def _remove_container(self, name: str) -> None:
        with self._step((f"container {name}", ABSENT)):
            self._cri.stop(self._ids[name])
            self._cri.remove(self._ids[name])

    def _remove_pod(self, name: str, *containers: str) -> None:
        gone = [(f"container {one}", ABSENT) for one in containers]
        with self._step((f"pod {name}", ABSENT), *gone):
            self._cri.stop_pod(self._ids[name])
            self._cri.remove_pod(self._ids[name])

    def _remove_image(self, image: str) -> None:
        with self._step((f"image {image}", ABSENT)):
            self._cri.remove_image(image)


class Expected:
    """What the marks before a cut promise."""

    def __init__(self, marks: list[bytes]) -> None:
        self._known: dict[str, str] = {}
        for mark in marks:
            key, value = json.loads(mark)
            self._known[key] = value

    def contradictions(self, cri: Cri) -> list[str]:
        """Each promise that the node breaks."""
        images = {tag for image in cri.images() for tag in image.repo_tags}
        pods = {one.metadata.name for one in cri.pods()}
        containers = {one.metadata.name: one.id for one in cri.containers()}
        found = [
            *self._of("image", images),
            *self._of("pod", pods),
            *self._of("container", set(containers)),
        ]
        for name, container_id in containers.items():
            found += self._of_status(name, cri.status(container_id))
        return found

    def _of(self, kind: str, there: set[str]) -> list[str]:
        found = [
            f"{kind} {name} was never asked for" for name in there if not self._get(kind, name)
        ]
        for key, value in self._known.items():
            sort, _, name = key.partition(" ")
            if sort == kind and value == PRESENT and name not in there:
                found.append(f"{key} is lost")
            if sort == kind and value == ABSENT and name in there:
                found.append(f"{key} is back")
        return found

    def _of_status(self, name: str, status: api.ContainerStatus) -> list[str]:
        """An exit code is the real one, or says that it is not known."""
        if status.state == api.CONTAINER_CREATED:
            started = self._get("start", name) == PRESENT
            return [f"{name} was started and is created now"] if started else []
        if status.state != api.CONTAINER_EXITED:
            return [f"{name} runs, says its state {status.state}"]
        answer = (status.exit_code, status.reason)
        real, unknown = (EXITS.get(name, -1), "Error"), (255, "Unknown")
        allowed = [real] if self._get("exit", name) == PRESENT else [real, unknown]
        if self._get("container", name) == MAYBE:  # it was being stopped
            allowed.append((137, "Error"))
        return [] if answer in allowed else [f"{name} ended with {answer}"]

    def _get(self, kind: str, name: str) -> str:
        return self._known.get(f"{kind} {name}", "")


def content(cri: Cri, image: str) -> str:
    """A digest of all names, modes and bytes in a new container's root file system."""
    config = pod("content", log_directory=LOGS)
    sandbox = cri.run(config)
    container_id = cri.create(sandbox, container("content", ["sh"], image), config)
    top = Path(f"/run/criagent/containers/{container_id}/rootfs")
    digest = hashlib.sha256()
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        facts = f"{path.relative_to(top)} {status.st_mode:o} {status.st_uid}\n"
        digest.update(facts.encode("utf-8", "surrogateescape"))
        if path.is_symlink():
            digest.update(bytes(path.readlink()))
        elif path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    cri.remove_pod(sandbox)
    return digest.hexdigest()
