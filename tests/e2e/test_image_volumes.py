# SPDX-License-Identifier: Apache-2.0
"""Images as volumes: what a container sees of them, what is refused, and what is left.

The first tests say the same as critest's image volume specs of later releases.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent, image_builder
from tests.support.cri_client import BUSYBOX, DEBIAN, Cri, api, container
from tests.support.image_archives import archive, command, packed, succeed
from tests.support.images import listed
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root

MADE = "registry.test/volume"
ROOT = Path("/var/lib/criagent")
RUN = Path("/run/criagent/containers")
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def odd_layers() -> list[bytes]:
    """Every kind of path that a sub-path may name."""
    base = image_builder.Layer()
    base.file("data/file", b"content\n", 0o644)
    base.file("data/gone", b"whited out above\n", 0o644)
    base.file("top", b"a file\n", 0o644)
    base.directory("owned", 0o750, uid=1234)
    for name, target in {
        "relative": "data",
        "absolute": "/data",
        "upwards": "../../../../../../data",
        "host": "/../../etc/criagent",
        "loop": "loop",
        "dangling": "nowhere",
    }.items():
        base.symlink(name, target)
    entry = tarfile.TarInfo(b"\xff\xfe".decode("utf-8", "surrogateescape") + "/")
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    base.entry(entry)
    base.symlink("unspeakable", b"\xff\xfe".decode("utf-8", "surrogateescape"))
    upper = image_builder.Layer()
    upper.file("data/.wh.gone", b"", 0o644)
    return [base.tar(), upper.tar()]


def whiteout_alone() -> list[bytes]:
    """One layer that takes away what is not there."""
    layer = image_builder.Layer()
    layer.file("kept", b"kept\n", 0o644)
    layer.file(".wh.gone", b"", 0o644)
    return [layer.tar()]


def drop_made(cri: Cri) -> None:
    for tag in listed(cri):
        if tag.startswith(MADE):
            cri.remove_image(tag)


@pytest.fixture
def odd(cri: Cri) -> Iterator[str]:
    """The tag of an image with odd paths."""
    succeed("import", "-", data=archive(odd_layers(), f"{MADE}:odd"))
    yield f"{MADE}:odd"
    with_fresh = Cri()
    for container_id in with_fresh.containers():
        with_fresh.remove(container_id.id)
    drop_made(with_fresh)
    with_fresh.close()


def volume(
    image: str, sub_path: str = "", path: str = "/volume", **fields: object
) -> Callable[[api.ContainerConfig], object]:
    """Adds the mount of an image."""

    def change(config: api.ContainerConfig) -> None:
        wanted = {"readonly": True, **fields}
        mount = config.mounts.add(container_path=path, image_sub_path=sub_path, **wanted)
        mount.image.image = image

    return change


def both(*changes: Callable[[api.ContainerConfig], object]) -> Callable[..., None]:
    def change(config: api.ContainerConfig) -> None:
        for one in changes:
            one(config)

    return change


def output(pods: Pods, container_id: str, script: str) -> str:
    done = pods.cri.exec(container_id, "sh", "-c", script)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout.decode())


@pytest.mark.parametrize("how", ["tag", "digest", "id", "bare id"])
def test_an_image_is_mounted_by_every_name_and_told_by_its_id(pods: Pods, how: str) -> None:
    image = listed(pods.cri)[DEBIAN]
    name = {
        "tag": DEBIAN,
        "digest": image.repo_digests[0],
        "id": image.id,
        "bare id": image.id.removeprefix("sha256:"),
    }[how]

    def asks(config: api.ContainerConfig) -> None:
        volume(name)(config)
        config.mounts[0].image.user_specified_image = "debian:13"

    container_id = pods.running(change=asks)
    assert output(pods, container_id, "cat /volume/srv/data/original") == "lower content\n"
    (mount,) = pods.cri.status(container_id).mounts
    assert mount.image.image == mount.image.image_ref == pods.cri.pull(DEBIAN) == image.id
    assert mount.image.user_specified_image == "debian:13"
    assert (mount.container_path, mount.host_path, mount.readonly) == ("/volume", "", True)


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_an_image_is_read_only_and_its_programs_run(pods: Pods, handler: str) -> None:
    def privileged(config: api.PodSandboxConfig | api.ContainerConfig) -> None:
        config.linux.security_context.privileged = True

    config = pods.config()
    privileged(config)
    sandbox = pods.cri.run(config, handler=handler), config
    container_id = pods.running(pod=sandbox, change=both(volume(BUSYBOX), privileged))
    assert output(pods, container_id, "/volume/bin/busybox echo runs") == "runs\n"
    done = pods.cri.exec(container_id, "touch", "/volume/x")
    assert done.exit_code != 0
    assert b"Read-only file system" in done.stderr
    # Not even a privileged container gets at the layers, which other containers share.
    again = "mount -o remount,rw,bind /volume; touch /volume/x"
    assert b"Read-only" in pods.cri.exec(container_id, "sh", "-c", again).stderr
    assert not any(path.exists() for path in (ROOT / "snapshots").glob("*/fs/x"))


def test_a_writable_image_volume_is_refused(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("bad", ["sleep", "1"])
    volume(BUSYBOX, readonly=False)(wanted)
    refused(lambda: pods.cri.create(sandbox, wanted, config), INVALID, "set readonly")


@pytest.mark.parametrize("sub_path", ["data", "data/", "./data", "relative", "absolute", "upwards"])
def test_a_sub_path_is_the_root_of_the_mount(pods: Pods, odd: str, sub_path: str) -> None:
    container_id = pods.running(change=volume(odd, sub_path))
    assert output(pods, container_id, "ls -A /volume; cat /volume/file") == "file\ncontent\n"
    assert pods.cri.status(container_id).mounts[0].image_sub_path == sub_path
    assert pods.cri.exec(container_id, "touch", "/volume/x").exit_code != 0


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda odd: volume(odd, "nowhere"), NOT_FOUND, f'does not exist in image "{MADE}:odd"'),
        (lambda odd: volume(odd, "data/gone"), NOT_FOUND, "does not exist"),
        (lambda odd: volume(odd, "dangling"), NOT_FOUND, "does not exist"),
        (lambda odd: volume(odd, "host"), NOT_FOUND, "does not exist"),
        (lambda odd: volume(odd, "top"), INVALID, "not a directory"),
        (lambda odd: volume(odd, "data/file"), INVALID, "not a directory"),
        (lambda odd: volume(odd, "top/below"), INVALID, "Not a directory"),
        (lambda odd: volume(odd, "loop"), INVALID, "symbolic links"),
        (lambda odd: volume(odd, "unspeakable"), INVALID, "UTF-8"),
        (lambda odd: volume(odd, "x" * 300), INVALID, "name too long"),
        (lambda odd: volume(odd, "/data"), INVALID, "relative image_sub_path"),
        (lambda odd: volume(odd, ".."), INVALID, "relative image_sub_path"),
        (lambda odd: volume(odd, "data/../data"), INVALID, "relative image_sub_path"),
        (lambda odd: volume(odd, "da\0ta"), INVALID, "relative image_sub_path"),
        (lambda odd: volume(odd, host_path="/tmp"), INVALID, "must have no host_path"),
        (lambda _: volume(""), INVALID, "requires image.image"),
        (lambda _: volume("UPPER CASE"), INVALID, "invalid image reference"),
        (lambda _: volume(f"{MADE}:absent"), NOT_FOUND, "pull it first"),
        (lambda _: volume("sha256:" + "0" * 64), NOT_FOUND, "pull it first"),
        (
            lambda odd: volume(odd, propagation=api.PROPAGATION_BIDIRECTIONAL),
            INVALID,
            "propagation",
        ),
        (
            lambda odd: both(volume(odd), volume(odd, "nowhere", path="/second")),
            NOT_FOUND,
            "mount /second",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_mounted_is_refused_with_its_reason(
    pods: Pods,
    odd: str,
    change: Callable[[str], Callable[[api.ContainerConfig], object]],
    code: grpc.StatusCode,
    words: str,
) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("bad", ["sleep", "1"])
    change(odd)(wanted)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.create(sandbox, wanted, config)
    assert caught.value.code() is code, caught.value.details()
    assert (caught.value.details() or "").startswith("ImageVolumeMountFailed: ")
    assert words in (caught.value.details() or "")
    assert pods.cri.containers() == []
    assert list(RUN.iterdir()) == []


def test_a_sub_path_without_an_image_is_refused(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("bad", ["sleep", "1"])
    wanted.mounts.add(container_path="/x", host_path="/tmp", image_sub_path="data")
    refused(lambda: pods.cri.create(sandbox, wanted, config), INVALID, "image_sub_path")


def test_all_layers_are_seen_as_one_tree(pods: Pods, odd: str) -> None:
    container_id = pods.running(change=both(volume(DEBIAN), volume(odd, path="/odd")))
    script = """
    ls /volume/srv/data /volume/var/lib/app; stat -c '%a %u' /volume/opt/owned
    ls /odd/data; stat -c '%a %u' /odd/owned
    """
    assert output(pods, container_id, script).split("\n") == [
        "/volume/srv/data:",
        "original",
        "original-too",
        "",
        "/volume/var/lib/app:",
        "new",
        "750 1234",
        "file",
        "750 1234",
        "",
    ]


def test_images_of_one_layer_and_of_none(pods: Pods) -> None:
    succeed("import", "-", data=archive(whiteout_alone(), f"{MADE}:one"))
    succeed("import", "-", data=archive([], f"{MADE}:none"))
    one, none = f"{MADE}:one", f"{MADE}:none"
    sandbox = pods.sandbox()
    container_id = pods.running(
        pod=sandbox, change=both(volume(one, path="/one"), volume(none, path="/none"))
    )
    assert output(pods, container_id, "ls -A /one; ls -A /none") == "kept\n"
    assert pods.cri.exec(container_id, "touch", "/none/x").exit_code != 0
    pods.cri.remove_pod(sandbox[0])
    drop_made(pods.cri)


def test_options_and_flags_are_honoured(pods: Pods, odd: str) -> None:
    slave = api.PROPAGATION_HOST_TO_CONTAINER
    container_id = pods.running(
        change=both(
            volume(BUSYBOX, path="/noexec", mount_options=["noexec", "nosuid", "nodev"]),
            volume(odd, path="/recursive", recursive_read_only=True),
            volume(odd, path="/slave", propagation=slave),
        )
    )
    assert pods.cri.exec(container_id, "/noexec/bin/busybox", "true").exit_code != 0
    table = output(pods, container_id, "cat /proc/self/mountinfo").splitlines()
    options = {line.split()[4]: line.split()[5].split(",") for line in table}
    assert {"ro", "noexec", "nosuid", "nodev"} <= set(options["/noexec"])
    assert "ro" in options["/recursive"]
    assert "ro" in options["/slave"]


def test_one_image_serves_many_mounts_containers_and_users(pods: Pods, odd: str) -> None:
    def user(config: api.ContainerConfig) -> None:
        config.linux.security_context.run_as_user.value = 1000

    def nested(config: api.ContainerConfig) -> None:
        config.mounts.add(container_path="/data", host_path="/tmp")
        volume(odd, path="/data/inner")(config)
        volume(odd, "data", path="/elsewhere")(config)

    sandbox = pods.sandbox()
    first = pods.running(pod=sandbox, change=both(nested, user))
    second = pods.running(pod=sandbox, change=volume(odd))
    assert output(pods, first, "cat /data/inner/top /elsewhere/file") == "a file\ncontent\n"
    assert pods.cri.exec(first, "ls", "/data/inner/owned").exit_code != 0
    pods.cri.remove(first)
    assert output(pods, second, "cat /volume/top") == "a file\n"
    Path("/tmp/inner").rmdir()  # crun's mount point


def test_layers_of_a_removed_image_stay_for_its_volumes(pods: Pods, odd: str) -> None:
    sandbox = pods.sandbox()
    container_id = pods.running(pod=sandbox, change=volume(odd))
    image_id = listed(pods.cri)[odd].id
    before = sorted(path.name for path in (ROOT / "snapshots").iterdir())
    pods.cri.remove_image(odd)
    for how in (agent.kill, agent.stop):  # a start collects layers too
        how()
        pods.cri.close()
        pods.cri = agent.start()
        assert output(pods, container_id, "cat /volume/data/file") == "content\n"
    assert sorted(path.name for path in (ROOT / "snapshots").iterdir()) == before
    mount = pods.cri.status(container_id).mounts[0]
    assert mount.image.image == image_id
    pods.cri.remove(container_id)
    assert not (RUN / container_id).exists()
    config = container("again", ["sleep", "1"])
    volume(odd)(config)
    refused(lambda: pods.cri.create(*sandbox[:1], config, sandbox[1]), NOT_FOUND, "pull it first")


def test_a_repeated_call_gets_the_same_container(pods: Pods, odd: str) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("one", ["sleep", "100"])
    volume(odd, "data")(wanted)
    container_id = pods.cri.create(sandbox, wanted, config)
    assert pods.cri.create(sandbox, wanted, config) == container_id
    pods.cri.start(container_id)
    assert output(pods, container_id, "cat /volume/file") == "content\n"


def test_an_artifact_is_refused_by_its_kind(cri: Cri) -> None:
    def entry(content: bytes, kind: str) -> dict[str, object]:
        blobs["blobs/" + image_builder.digest(content).replace(":", "/")] = content
        return {"mediaType": kind, "digest": image_builder.digest(content), "size": len(content)}

    blobs: dict[str, bytes] = {}
    manifest = {
        "schemaVersion": 2,
        "artifactType": "application/vnd.example.model",
        "config": entry(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [entry(b"weights", "application/vnd.example.weights")],
    }
    described = entry(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    index = json.dumps({"manifests": [described]}).encode()
    members = {"oci-layout": b"{}", "index.json": index, **blobs}
    done = command("import", "-", data=packed(members))
    assert done.returncode != 0
    assert b"OCI artifact (application/vnd.example.model)" in done.stderr
