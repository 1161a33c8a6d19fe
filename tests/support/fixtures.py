# SPDX-License-Identifier: Apache-2.0
"""Images for the fixture registry: stand-ins for what critest pulls, and a rich Debian image.

Run inside the test node: `python3 -m tests.support.fixtures HOST:PORT`. Everything is made from
Debian packages of the node; nothing is fetched.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.image_builder import PATH_VARIABLE, Image, Json, Layer, image, push

_BUSYBOX = Path("/bin/busybox")
_STAGING = "k8s-staging-cri-tools/test-image-"
_SHELL: Json = {"Cmd": ["sh"], "Env": [PATH_VARIABLE]}

_PGREP = b"""#!/bin/sh
for p in /proc/[0-9]*; do
    [ "$(cat $p/comm 2>/dev/null)" = "$1" ] && echo ${p#/proc/}
done
true
"""
_PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1::/usr/sbin:/bin/false
www-data:x:33:33::/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = """root:x:0:
daemon:x:1:
www-data:x:33:
nogroup:x:65534:
"""
_EUID = """#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\\n", geteuid()); return 0; }
"""
_PAUSE = """#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
    signal(SIGINT, leave);
    signal(SIGTERM, leave);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
"""
_NGINX = """daemon off; user root; pid /var/run/nginx.pid; error_log /dev/stderr;
events {}
http { access_log /dev/stdout; server { listen %d; location / { root /www; } } }
"""


def compiled(source: str) -> bytes:
    """A static program of C source."""
    with tempfile.TemporaryDirectory() as name:
        target, text = Path(name, "program"), Path(name, "program.c")
        text.write_text(source)
        subprocess.run(["gcc", "-O2", "-static", "-o", target, text], check=True)
        return target.read_bytes()


def shell_without_ls() -> bytes:
    """Busybox whose shell knows no `ls` applet, so that a masked /bin/ls cannot be run anyway."""
    program = _BUSYBOX.read_bytes()
    if program.count(b"\0ls\0lsmod\0") != 1:
        raise SystemExit("this busybox has another applet table")
    return program.replace(b"\0ls\0lsmod\0", b"\0lr\0lsmod\0")


def busybox(passwd: str = "", group: str = "", marker: str = "") -> Layer:
    """A small userland."""
    layer = Layer()
    for path in ("etc", "var", "root", "proc", "sys", "dev", "home"):
        layer.directory(path)
    layer.directory("tmp", 0o1777)
    layer.file("bin/busybox", _BUSYBOX.read_bytes())
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet == "ls":
            layer.file("bin/ls", _BUSYBOX.read_bytes())  # a file of its own: critest masks it
        elif applet == "sh":
            layer.file("bin/sh", shell_without_ls())
        elif applet not in {"busybox", "pgrep", "ipcs"}:
            layer.symlink(f"bin/{applet}", "busybox")
    layer.file("bin/pgrep", _PGREP)
    layer.program(Path("/usr/bin/ipcs"), "bin/ipcs")
    layer.file("etc/passwd", (_PASSWD + passwd).encode(), 0o644)
    layer.file("etc/group", (_GROUP + group).encode(), 0o644)
    if marker:
        layer.file(marker, b"1", 0o644)
    return layer


def nginx(port: int) -> Layer:
    """nginx that listens on `port`."""
    layer = Layer()
    for path in ("var/log/nginx", "var/lib/nginx", "var/run", "run", "tmp", "proc", "sys", "dev"):
        layer.directory(path, 0o1777)
    layer.program(Path("/usr/sbin/nginx"), "usr/sbin/nginx")
    layer.file("etc/passwd", _PASSWD.encode(), 0o644)
    layer.file("etc/group", _GROUP.encode(), 0o644)
    layer.file("etc/nginx/nginx.conf", (_NGINX % port).encode(), 0o644)
    layer.file("www/index.html", b"<html><body>Welcome to nginx!</body></html>", 0o644)
    layer.file("bin/busybox", _BUSYBOX.read_bytes())
    for applet in ("sh", "cat", "ls", "ps", "netstat"):
        layer.symlink(f"bin/{applet}", "busybox")
    return layer


def httpd() -> Layer:
    """A userland whose httpd applet serves one page."""
    layer = busybox()
    layer.file("www/index.html", b"<html><body><h1>It works!</h1></body></html>", 0o644)
    return layer


def single(layer: Layer, config: Json) -> list[tuple[Image, str]]:
    """An image of one layer for this architecture."""
    return [(image([layer.tar()], config), "amd64")]


Published = tuple[list[tuple[Image, str]], tuple[str, ...]]


def critest_images() -> Iterator[Published]:
    """Stand-ins with their names."""
    yield single(busybox(), _SHELL), ("e2e-test-images/busybox:1.29-2",)
    serve: Json = {
        "Cmd": ["nginx", "-e", "/dev/stderr"],
        "Env": [PATH_VARIABLE],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    }
    yield single(nginx(80), serve), ("e2e-test-images/nginx:1.14-2",)
    yield single(nginx(12003), serve), ("k8s-staging-cri-tools/hostnet-nginx-amd64:latest",)
    script = "echo \"Command line: 'httpd -D FOREGROUND'\"; exec httpd -f -p 80 -h /www"
    page: Json = {"Cmd": ["sh", "-c", script], "Env": [PATH_VARIABLE]}
    yield single(httpd(), page), ("e2e-test-images/httpd:2.4.39-4",)
    layer = busybox()
    layer.file("nnp", compiled(_EUID), 0o4755)
    user: Json = {"Entrypoint": ["/nnp"], "User": "1000", "Env": [PATH_VARIABLE]}
    yield single(layer, user), ("e2e-test-images/nonewprivs:1.3",)
    program = compiled(_PAUSE)
    for version in ("3.9", "3.10"):
        layer = Layer()
        layer.file("pause", program)
        config: Json = {
            "Entrypoint": ["/pause"],
            "User": "65535:65535",
            "Labels": {"version": version},
        }
        yield single(layer, config), (f"pause:{version}",)


def cri_tools_images() -> Iterator[Published]:
    """The image tests' own images: a userland with a marker file each."""
    for marker, name in {
        "latest": "latest:latest",
        "tag": "tag:test",
        "all": "tag:all",
        "digest": "digest:latest",
        "n1": "1:latest",
        "n2": "2:latest",
        "n3": "3:latest",
    }.items():
        yield single(busybox(marker=marker), _SHELL), (_STAGING + name,)
    names = tuple(f"{_STAGING}tags:{number}" for number in (1, 2, 3))
    yield single(busybox(marker="tags"), _SHELL), names
    for name, user in {
        "user-uid": "1002",
        "user-username": "www-data",
        "user-uid-group": "1003:users",
        "user-username-group": "www-data:100",
    }.items():
        layer = busybox(group="users:x:100:\n")
        yield single(layer, {**_SHELL, "User": user}), (f"{_STAGING}{name}:latest",)
    layer = busybox(
        passwd="default-user:x:1000:1000::/home:/bin/sh\n",
        group="default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
    )
    names = (f"{_STAGING}predefined-group:latest",)
    yield single(layer, {**_SHELL, "User": "1000"}), names


def debian_layers() -> list[bytes]:
    """Layers that hold everything layers can hold."""
    base = Layer()
    for path in ("dev", "proc", "sys", "run", "root", "srv/data", "var/lib/app"):
        base.directory(path)
    base.directory("tmp", 0o1777)
    base.directory("opt/owned", 0o750, uid=1234)
    base.symlink("bin", "usr/bin")
    for program in (
        "bash",
        "cat",
        "ls",
        "id",
        "stat",
        "sleep",
        "env",
        "getfattr",
        "find",
        "sha256sum",
    ):
        base.program(Path(f"/usr/bin/{program}"), f"usr/bin/{program}")
    base.symlink("usr/bin/sh", "bash")
    base.file("etc/os-release", Path("/etc/os-release").read_bytes(), 0o644)
    base.file("etc/passwd", _PASSWD.encode(), 0o644)
    base.file("etc/group", _GROUP.encode(), 0o644)
    base.file("srv/data/original", b"lower content\n", 0o644)
    base.file("srv/data/gone", b"to be whited out\n", 0o644)
    base.file("var/lib/app/old", b"to be hidden by an opaque directory\n", 0o644)
    base.file("opt/owned/file", b"owned\n", 0o640)
    base.file("srv/linked", b"one inode\n", 0o644)
    base.hard_link("srv/linked-too", "srv/linked")

    upper = Layer()
    upper.file("srv/data/.wh.gone", b"", 0o644)
    upper.directory("var/lib/app", 0o755)
    upper.file("var/lib/app/.wh..wh..opq", b"", 0o644)
    upper.file("var/lib/app/new", b"new\n", 0o644)
    upper.file("opt/owned/added", b"below an implied directory\n", 0o644, implicit=True)
    upper.hard_link("srv/data/original-too", "srv/data/original")
    upper.file("bin/through-link", b"#!/bin/sh\necho through\n", implicit=True)

    odd = Layer()
    odd.file("srv/setuid", b"#!/bin/sh\n", 0o4755)
    odd.file("srv/attributed", b"x\n", 0o644, xattrs={"user.colour": "blue"})
    # VFS_CAP_REVISION_2 with CAP_NET_RAW permitted and effective (man 7 capabilities).
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
    odd.file("srv/capable", b"x\n", xattrs={"security.capability": capability.decode("latin-1")})
    odd.file("srv/" + "n" * 200, b"a long name\n", 0o644)
    odd.file("srv/" + b"\xff\xfe-name".decode("utf-8", "surrogateescape"), b"no UTF-8\n", 0o644)
    for name, kind in (("srv/fifo", tarfile.FIFOTYPE), ("srv/null", tarfile.CHRTYPE)):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.devmajor, entry.devminor = kind, 0o644, 1, 3
        odd.entry(entry)
    sparse = tarfile.TarInfo("srv/sparse")
    sparse.mode, sparse.size = 0o644, 4
    sparse.pax_headers = {
        "GNU.sparse.map": "1048572,4",
        "GNU.sparse.size": "1048576",
        "GNU.sparse.numblocks": "1",
    }
    odd.entry(sparse, b"tail")
    return [base.tar(), upper.tar(), odd.tar()]


def debian_image() -> Published:
    """The rich image, for two architectures; the other one's layers are never run."""
    config: Json = {"Cmd": ["bash"], "Env": [PATH_VARIABLE], "WorkingDir": "/srv"}
    layers = debian_layers()
    other = Layer()
    other.file("arm64", b"not for this machine\n", 0o644)
    images = [
        (image([other.tar()], config, arch="arm64"), "arm64"),
        (image(layers, config, compression="mixed"), "amd64"),
    ]
    return images, ("fixtures/debian:13",)


def main() -> None:
    """Push everything to the registry named by the first argument."""
    registry = sys.argv[1]
    for images, names in (debian_image(), *critest_images(), *cri_tools_images()):
        push(registry, images, *names)
        print(*names)


if __name__ == "__main__":
    main()
