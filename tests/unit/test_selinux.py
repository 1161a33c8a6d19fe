# SPDX-License-Identifier: Apache-2.0
"""SELinux: labels from policy, pod and container, and the labelling of trees.

A kernel without SELinux keeps `security.selinux` like any attribute, so that trees are labelled for
real here; which labels a policy knows only one with SELinux can say.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.kernel import selinux as kernel
from criagent.model.common import SELinuxOptions
from criagent.model.container import ImageMount, Mount
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSecurity, SandboxSpec
from criagent.runtime.spec.inputs import ResolvedMount, SelinuxLabels
from criagent.runtime.spec.security.selinux import Context, Selinux, read_contexts, validate_selinux

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
XATTR = "security.selinux"
PROCESS = Context("system_u", "system_r", "container_t", "s0")
FILE = Context("system_u", "object_r", "container_file_t", "s0")


@pytest.fixture
def fs() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def sandbox(level: str = "s0:c1,c2", options: SELinuxOptions | None = None) -> Sandbox:
    metadata = SandboxMetadata(name="p", uid="u", namespace="n")
    spec = SandboxSpec(metadata=metadata, security=SandboxSecurity(selinux=options))
    return Sandbox(
        id=SandboxId("0" * 64), spec=spec, created_at_ns=1, boot_id="b", selinux_level=level
    )


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"level": "s0,c4,c5"}, "level"),
        ({"level": "c4"}, "level"),
        ({"level": "s0:c4\n"}, "level"),
        ({"level": "s0:c10000"}, "level"),
        ({"user": "a:b"}, "user"),
        ({"role": "a b"}, "role"),
        ({"type": "a\0"}, "type"),
    ],
)
def test_what_is_part_of_no_label_is_refused(fields: dict[str, str], part: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"selinux_options.{part}"):
        validate_selinux("container", SELinuxOptions(**fields))


@pytest.mark.parametrize(
    "level", ["", "s0", "s0:c4,c5", "s0-s0", "s0:c0.c1023", "s0-s0:c0.c1023", "s15:c1,c2.c7"]
)
def test_levels_of_every_form_are_taken(level: str) -> None:
    validate_selinux("container", SELinuxOptions(level=level))
    validate_selinux("container", None)


def test_contexts_are_those_of_the_configured_policy(tmp_path: Path) -> None:
    config = tmp_path / "config"
    assert read_contexts(config) is None
    config.write_text("# comment\nSELINUX=enforcing\nSELINUXTYPE=targeted\n")
    assert read_contexts(config) is None
    contexts = tmp_path / "targeted/contexts/lxc_contexts"
    contexts.parent.mkdir(parents=True)
    contexts.write_text(f'process = "{PROCESS}"\ncontent = "x"\nfile = "{FILE}"\n')
    assert read_contexts(config) == (PROCESS, FILE)
    contexts.write_text("process = broken\nfile = broken\n")
    assert read_contexts(config) is None


def test_each_pod_has_a_level_of_its_own(fs: ThreadPoolExecutor) -> None:
    selinux = Selinux(fs=fs, process=PROCESS, file=FILE)
    pods: list[Sandbox] = []
    for _ in range(200):
        pods.append(sandbox(selinux.level(sandbox().spec, pods)))
    assert len({pod.selinux_level for pod in pods}) == 200
    for pod in pods:
        validate_selinux("pod", SELinuxOptions(level=pod.selinux_level))
    asked = sandbox(options=SELinuxOptions(level="s0:c7,c8")).spec
    assert selinux.level(asked, pods) == "s0:c7,c8"


async def test_without_selinux_there_are_no_labels(fs: ThreadPoolExecutor) -> None:
    off = Selinux(fs=fs)
    options = SELinuxOptions(type="spc_t")
    assert off.level(sandbox(options=options).spec, []) == ""
    assert await off.labels(sandbox("", options), options) is None
    on = Selinux(fs=fs, process=PROCESS, file=FILE)
    assert await on.labels(sandbox(""), options) is None  # a pod of before SELinux was on


@pytest.mark.parametrize(
    ("pod", "own", "privileged", "process", "mount"),
    [
        ({}, {}, False, "system_u:system_r:container_t:s0:c1,c2", LABEL),
        ({}, {"level": "s0:c7,c8"}, False, "system_u:system_r:container_t:s0:c7,c8",
         "system_u:object_r:container_file_t:s0:c7,c8"),
        ({"type": "a_t", "user": "x_u"}, {"type": "b_t", "role": "y_r"}, False,
         "x_u:y_r:b_t:s0:c1,c2", "x_u:object_r:container_file_t:s0:c1,c2"),
        ({}, {}, True, "system_u:system_r:spc_t:s0", LABEL),
    ],
)  # fmt: skip
def test_labels_are_the_policys_with_the_stated_parts(
    pod: dict[str, str],
    own: dict[str, str],
    privileged: bool,
    process: str,
    mount: str,
    fs: ThreadPoolExecutor,
) -> None:
    selinux = Selinux(fs=fs, process=PROCESS, file=FILE)
    found = selinux.combined(
        sandbox(options=SELinuxOptions(**pod)), SELinuxOptions(**own), privileged=privileged
    )
    assert found == SelinuxLabels(process=process, mount=mount)


@pytest.fixture
def ground() -> Iterator[Path]:
    """A directory outside /dev, where nothing is relabelled; tmp_path may lie there."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        yield Path(made)


@pytest.fixture
def tree(ground: Path) -> Path:
    """Directories, files and links, one of which leads out of the tree."""
    top = ground / "tree"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/file").write_text("x")
    (top / "a/b/c/file").write_text("x")
    (ground / "outside").write_text("x")
    (top / "out").symlink_to(ground / "outside")
    (top / "a/up").symlink_to("..")
    os.mkfifo(top / "pipe")
    (top / "passed").mkdir()
    (top / "passed/file").write_text("x")
    try:
        os.setxattr(ground / "outside", XATTR, b"own\0")
    except PermissionError:
        pytest.skip("labels need CAP_SYS_ADMIN")
    return top


def labels(*paths: Path) -> set[str]:
    return {
        os.getxattr(path, XATTR, follow_symlinks=False).rstrip(b"\0").decode() for path in paths
    }


def test_a_tree_is_labelled_whole_and_nothing_else(tree: Path) -> None:
    changed = kernel.relabel(str(tree), LABEL, {str(tree / "passed")})
    inside = [tree, *(path for path in tree.rglob("*") if "passed" not in str(path))]
    assert labels(*inside) == {LABEL}
    assert changed == len(inside)
    assert labels(tree.parent / "outside") == {"own"}
    for path in (tree / "passed", tree / "passed/file"):
        with pytest.raises(OSError, match="No data"):
            labels(path)


def test_a_labelled_tree_costs_one_look_and_an_unfinished_one_only_the_rest(tree: Path) -> None:
    whole = kernel.relabel(str(tree), LABEL)
    os.removexattr(tree / "a/file", XATTR)
    assert kernel.relabel(str(tree), LABEL) == 0  # its top is labelled last
    os.removexattr(tree, XATTR)
    assert kernel.relabel(str(tree), LABEL) == 2
    assert kernel.relabel(str(tree), LABEL + ",c3") == whole


def test_a_file_is_labelled_and_a_link_to_one_is_refused(tree: Path) -> None:
    assert kernel.relabel(str(tree / "a/file"), LABEL) == 1
    (tree / "link").symlink_to("a")
    with pytest.raises(OSError, match="link"):
        kernel.relabel(str(tree / "link/b"), LABEL)


@pytest.fixture
def nested(tmp_path: Path, tree: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a directory with so many inside one another, deeper than anything real."""
    del tree  # it has looked whether labels can be set
    deep = tmp_path / "deep"

    def make(levels: int) -> Path:
        deep.mkdir()
        here = os.open(deep, os.O_RDONLY)
        for _ in range(levels):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(here)
        return deep

    yield make
    subprocess.run(["rm", "-r", deep], check=True)


def test_a_deep_tree_is_labelled(nested: Callable[[int], Path]) -> None:
    assert kernel.relabel(str(nested(450)), LABEL) == 451


def test_a_tree_that_is_too_deep_is_refused_and_leaves_no_descriptor(
    nested: Callable[[int], Path],
) -> None:
    deep = nested(600)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="too long"):
        kernel.relabel(str(deep), LABEL)
    assert len(os.listdir("/proc/self/fd")) == before


def mounted(source: Path | str, **fields: Any) -> ResolvedMount:
    request = Mount(container_path="/c", host_path=str(source), **fields)
    return ResolvedMount(request=request, source=str(source), propagation="rprivate")


async def test_only_mounts_that_ask_for_it_are_relabelled(
    tree: Path, fs: ThreadPoolExecutor
) -> None:
    # CVE-2021-43816: no file of the node is labelled because of its place in the container
    selinux = Selinux(fs=fs, process=PROCESS, file=FILE)
    given = SelinuxLabels(process="p", mount=LABEL)
    image = ImageMount(image="i")
    await selinux.relabel(
        [mounted(tree), mounted(tree / "a", selinux_relabel=True, image=image)], given
    )
    with pytest.raises(OSError, match="No data"):
        labels(tree)
    await selinux.relabel([mounted(tree, selinux_relabel=True)], None)
    with pytest.raises(OSError, match="No data"):
        labels(tree / "a")
    await selinux.relabel([mounted(tree, selinux_relabel=True)], given)
    assert labels(tree, tree / "a") == {LABEL}


@pytest.mark.parametrize("source", ["/", "/etc", "/usr", "/proc/sys", "/dev/null", "/var/lib"])
async def test_directories_of_the_node_are_never_relabelled(
    source: str, fs: ThreadPoolExecutor
) -> None:
    selinux = Selinux(fs=fs, process=PROCESS, file=FILE)
    with pytest.raises(InvalidRequestError, match="belongs to the node"):
        await selinux.relabel(
            [mounted(source, selinux_relabel=True)], SelinuxLabels(process="p", mount=LABEL)
        )
