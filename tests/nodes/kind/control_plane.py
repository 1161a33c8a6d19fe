# SPDX-License-Identifier: Apache-2.0
"""control_plane.py PROGRAMS OUT.tar: the images of `kubeadm config images list`, as one archive.

Run inside the test node. The Kubernetes programs, etcd and coredns come from PROGRAMS, built there
from their Go modules; what kube-proxy calls (iptables, nft, conntrack) from the node's packages.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.support.fixtures import compiled
from tests.support.image_builder import PATH_VARIABLE, Image, Json, Layer, digest, image

_INDEX = "application/vnd.oci.image.index.v1+json"
_XTABLES = Path("/usr/sbin/xtables-nft-multi")
_PAUSE = """#include <unistd.h>
int main(void) { for (;;) pause(); }
"""


def kube_proxy(layer: Layer) -> None:
    """What kube-proxy runs, in either of its modes."""
    layer.program(_XTABLES, "usr/sbin/xtables-nft-multi")
    for family in ("iptables", "ip6tables"):
        for verb in ("", "-save", "-restore"):
            layer.symlink(f"usr/sbin/{family}{verb}", "xtables-nft-multi")
    for plugin in sorted(Path("/usr/lib/x86_64-linux-gnu/xtables").glob("*.so")):
        layer.file(str(plugin).lstrip("/"), plugin.read_bytes())
    for program in ("nft", "conntrack"):
        layer.program(Path("/usr/sbin", program), f"usr/sbin/{program}")
    layer.file("etc/nsswitch.conf", b"hosts: files dns\n", 0o644)
    layer.directory("run")


def built(name: str, programs: Path) -> Image:
    """The image of that program."""
    layer = Layer()
    layer.directory("tmp", 0o1777)
    config: Json = {"Env": [PATH_VARIABLE]}
    if name == "pause":
        layer.file("pause", compiled(_PAUSE))
        config["Entrypoint"] = ["/pause"]
    elif name == "coredns":
        layer.file("coredns", (programs / name).read_bytes())
        config["Entrypoint"] = ["/coredns"]
    else:
        layer.file(f"usr/local/bin/{name}", (programs / name).read_bytes())
        config["Entrypoint"] = [f"/usr/local/bin/{name}"]
    if name == "kube-proxy":
        kube_proxy(layer)
    return image([layer.tar()], config)


def main(programs: Path, out: Path) -> None:
    """Write the archive: an OCI layout whose index names each image."""
    listed = subprocess.run(
        [programs / "kubeadm", "config", "images", "list", "--kubernetes-version=v1.36.3"],
        capture_output=True,
        text=True,
        check=True,
    )
    entries = []
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:

        def member(path: str, content: bytes) -> None:
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))

        for reference in listed.stdout.split():
            name = reference.rpartition(":")[0].rpartition("/")[2]
            one = built(name, programs)
            for blob, content in {**one.blobs, digest(one.manifest): one.manifest}.items():
                member(f"blobs/{blob.replace(':', '/')}", content)
            names = {"io.containerd.image.name": reference}
            entries.append({**one.descriptor, "annotations": names})
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}
        member("index.json", json.dumps(index).encode())
        member("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
