# SPDX-License-Identifier: Apache-2.0
"""Pulls by registries.conf, with short names, and by the credentials of a namespace, from real
registries.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from aiohttp import web

from tests.support import agent
from tests.support.artifacts import ArtifactRegistry, artifact_registry
from tests.support.cri_client import Cri, api
from tests.support.image_builder import Layer, image, push
from tests.support.pods import Pods
from tests.support.pulling import Registry, served

pytestmark = pytest.mark.root


def tar() -> bytes:
    layer = Layer()
    layer.file("etc/text", b"of an image\n")
    return layer.tar()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactRegistry]:
    """A registry with the images apps/one and mirror/apps/two."""
    with artifact_registry(tmp_path_factory.mktemp("registry")) as one:
        for number, name in enumerate(("apps/one", "mirror/apps/two", "library/busy")):
            push(one.host, [(image([tar()], {"Env": [f"N={number}"]}), "amd64")], f"{name}:1")
        yield one


@pytest.fixture
def conf(pods: Pods, registry: ArtifactRegistry, tmp_path: Path) -> Iterator[Path]:
    """registries.conf of an agent, empty for the time being."""
    file = tmp_path / "registries.conf"
    file.write_text("")
    (tmp_path / "auth").mkdir()
    agent.stop()
    pods.cri = agent.start(
        f'[registry]\nregistries_conf = "{file}"\nnamespaced_auth_dir = "{tmp_path}/auth"\n'
        f'config_dirs = ["{tmp_path}/certs.d"]\n'
        f'docker_config = "{tmp_path}/docker.json"\ncredential_helper_timeout_s = 2.0\n'
    )
    before = {one.id for one in pods.cri.images()}
    yield file
    for found in pods.cri.images():
        if found.id not in before:
            pods.cri.remove_image(found.id)
    agent.stop()
    pods.cri = agent.start()


def refusal(cri: Cri, name: str, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        cri.pull(name)
    assert caught.value.code() is code, caught.value.details()
    return caught.value.details() or ""


def status(cri: Cri, name: str) -> api.Image | None:
    answer = cri.image.ImageStatus(api.ImageStatusRequest(image=api.ImageSpec(image=name)))
    return answer.image if answer.HasField("image") else None


def test_an_image_comes_from_a_mirror_by_its_own_name(
    conf: Path, pods: Pods, registry: ArtifactRegistry
) -> None:
    conf.write_text(
        f'[[registry]]\nprefix = "registry.invalid/team"\nlocation = "{registry.host}/apps"\n'
        f'[[registry.mirror]]\nlocation = "{registry.host}/mirror/apps"\n'
        '[[registry]]\nprefix = "registry.invalid/team/bad"\nblocked = true\n'
    )
    for name in ("registry.invalid/team/two:1", "registry.invalid/team/one:1"):
        pods.cri.pull(name)
        found = status(pods.cri, name)
        assert found is not None
        assert list(found.repo_tags) == [name]
    text = refusal(pods.cri, "registry.invalid/team/bad:1", grpc.StatusCode.PERMISSION_DENIED)
    assert f"registry.invalid/team/bad is blocked by {conf}" in text
    conf.write_text("[[registry]]\n")
    text = refusal(pods.cri, "registry.invalid/team/two:1", grpc.StatusCode.INVALID_ARGUMENT)
    assert f"{conf}: [[registry]] '': prefix or location" in text


def test_insecure_is_https_of_any_certificate_then_http(
    conf: Path, pods: Pods, registry: ArtifactRegistry
) -> None:
    conf.write_text(
        f'[[registry]]\nprefix = "registry.invalid"\nlocation = "{registry.host}"\n'
        "insecure = true\n"
    )
    pods.cri.pull("registry.invalid/apps/one:1")
    text = refusal(pods.cri, "registry.invalid/apps/none:1", grpc.StatusCode.NOT_FOUND)
    assert f"http://{registry.host}" in text


def test_short_names(conf: Path, pods: Pods, registry: ArtifactRegistry) -> None:
    nobody = "127.0.0.1:9"
    search = f'unqualified-search-registries = ["{nobody}", "{registry.host}"]\n'
    conf.write_text(search + 'short-name-mode = "enforcing"\n')
    text = refusal(pods.cri, "apps/one:1", grpc.StatusCode.INVALID_ARGUMENT)
    assert f"can be an image of {nobody}, {registry.host}; write the whole name" in text
    assert status(pods.cri, "apps/one:1") is None
    conf.write_text(search)
    pods.cri.pull("apps/one:1")
    found = status(pods.cri, "apps/one:1")
    assert found is not None
    assert list(found.repo_tags) == [f"{registry.host}/apps/one:1"]
    text = refusal(pods.cri, "apps/none:1", grpc.StatusCode.UNKNOWN)
    assert 'short name "apps/none:1": ' in text
    assert text.count("apps/none:1") >= 3
    drop_in = conf.parent / "registries.conf.d" / "10-aliases.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f'[aliases]\n"two" = "{registry.host}/mirror/apps/two"\n')
    conf.write_text('short-name-mode = "enforcing"\n' + search)
    image_id = pods.cri.pull("two:1")
    found = status(pods.cri, "two:1")
    assert found is not None
    assert (found.id, list(found.repo_tags)) == (image_id, [f"{registry.host}/mirror/apps/two:1"])
    pods.cri.remove_image("two:1")
    assert status(pods.cri, f"{registry.host}/mirror/apps/two:1") is None


def test_the_key_can_change_by_a_reload(
    conf: Path, pods: Pods, registry: ArtifactRegistry, tmp_path: Path
) -> None:
    other = tmp_path / "other.conf"
    other.write_text(f'[aliases]\n"two" = "{registry.host}/mirror/apps/two"\n')
    assert "is a short name" in refusal(pods.cri, "two:1", grpc.StatusCode.INVALID_ARGUMENT)
    drop_in = Path("/etc/criagent/config.d/test.toml")
    drop_in.write_text(drop_in.read_text().replace(str(conf), str(other)))
    done = subprocess.check_output([sys.executable, "-m", "criagent", "reload", "--json"])
    assert json.loads(done) == {"changed": ["registry.registries_conf"], "need_restart": []}
    pods.cri.pull("two:1")


@pytest.fixture
def private() -> Iterator[Registry]:
    """A registry that wants alice for everything."""
    with served() as one:
        wanted = "Basic " + base64.b64encode(b"alice:s3cret").decode()

        async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
            if request.headers.get("Authorization") == wanted:
                return None
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})

        one.hook = hook
        one.image(tar())
        yield one


def test_a_namespace_has_credentials_for_one_pull(
    conf: Path, pods: Pods, private: Registry, tmp_path: Path
) -> None:
    host = f"127.0.0.1:{private.port}"
    request = api.PullImageRequest(image=api.ImageSpec(image=f"{host}/a/b:1"))
    request.sandbox_config.metadata.namespace = "shop"
    digest = hashlib.sha256(f"{host}/a/b".encode()).hexdigest()
    file = tmp_path / "auth" / f"shop-{digest}.json"
    auth = base64.b64encode(b"alice:s3cret").decode()
    file.write_text(json.dumps({"auths": {f"{host}/a": {"auth": auth}}}))
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.pull(f"{host}/a/b:1")  # of no namespace
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert file.exists()
    assert pods.cri.image.PullImage(request, timeout=60).image_ref
    assert not file.exists()
    with pytest.raises(grpc.RpcError, match="requires credentials"):
        pods.cri.image.PullImage(request, timeout=60)
    file.write_text("{s3cret")
    with pytest.raises(grpc.RpcError, match="namespaced_auth_dir") as caught:
        pods.cri.image.PullImage(request, timeout=60)
    assert "s3cret" not in (caught.value.details() or "")
    log = agent.LOG.read_text()
    assert "s3cret" not in log
    assert auth not in log


def test_credentials_of_a_short_name_are_for_docker_io(
    conf: Path, pods: Pods, private: Registry
) -> None:
    """The kubelet looked them up for docker.io; the alias leads elsewhere."""
    host = f"127.0.0.1:{private.port}"
    conf.write_text(f'[aliases]\n"app" = "{host}/a/b"\n')
    request = api.PullImageRequest(image=api.ImageSpec(image="app:1"))
    request.auth.username, request.auth.password = "alice", "s3cret"
    with pytest.raises(grpc.RpcError, match="requires credentials"):
        pods.cri.image.PullImage(request, timeout=60)
    assert not any("Authorization" in headers for headers in private.headers)
    request.auth.server_address = host
    assert pods.cri.image.PullImage(request, timeout=60).image_ref


def test_a_credential_helper_of_the_node(
    conf: Path, pods: Pods, private: Registry, registry: ArtifactRegistry, tmp_path: Path
) -> None:
    host = f"127.0.0.1:{private.port}"
    program = Path("/usr/local/bin/docker-credential-test")
    program.write_text(
        '#!/bin/sh\n[ "$1" = get ] && read -r server && [ "$server" = '
        f"""{host} ] && echo '{{"Username":"alice","Secret":"s3cret"}}'\n"""
    )
    program.chmod(0o755)
    (tmp_path / "docker.json").write_text(json.dumps({"credHelpers": {host: "test"}}))
    try:
        pods.cri.pull(f"{host}/a/b:1")
        os.chown(program, 1000, 1000)
        text = refusal(pods.cri, f"{host}/a/b:1", grpc.StatusCode.PERMISSION_DENIED)
        assert "docker-credential-test, which" in text
        assert "belongs to uid 1000" in text
        os.chown(program, 0, 0)
        program.write_text("#!/bin/sh\nsleep 1000\n")
        text = refusal(pods.cri, f"{host}/a/b:1", grpc.StatusCode.PERMISSION_DENIED)
        assert "has not answered for 2 s" in text
    finally:
        program.unlink()
    pods.cri.pull(f"{registry.host}/apps/one:1")  # of a registry without a helper
    assert "s3cret" not in agent.LOG.read_text()
