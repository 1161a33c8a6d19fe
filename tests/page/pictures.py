# SPDX-License-Identifier: Apache-2.0
"""Pictures of docs/: `criagent top` as SVG, and the page that tests/page/run photographs.

Both are drawn by the program's own code from a node that was made up for the picture.
"""

from __future__ import annotations

import html
import sys
import time
from pathlib import Path
from typing import Any

from criagent._proto import api_pb2 as api
from criagent.cli.containers.top import Seen, View, lines
from criagent.cli.containers.usage import Usage
from criagent.cri.boundary import FailedCall
from criagent.daemon.node_page import page

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
_MIB = 1 << 20
_BOLD = ' font-weight="bold"'
# Namespace, pod, container, CPU in %, memory and writable layer in MiB.
_CONTAINERS = (
    ("shop", "web-7d4b9", "nginx", 12.4, 38, 1),
    ("shop", "web-7d4b9", "log-shipper", 0.8, 21, 4),
    ("shop", "db-0", "postgres", 41.7, 512, 96),
    ("shop", "cart-59c8d", "cart", 5.2, 140, 2),
    ("kube-system", "kube-proxy-x2k9q", "kube-proxy", 0.3, 25, 0),
    ("kube-system", "coredns-6f6b6", "coredns", 0.9, 34, 0),
    ("monitoring", "node-exporter-8fj2m", "node-exporter", 1.6, 19, 0),
)
_REPORT: dict[str, Any] = {
    "version": "0.2.0",
    "conditions": [
        {"type": "RuntimeReady", "status": True, "reason": "", "message": ""},
        {"type": "NetworkReady", "status": True, "reason": "", "message": ""},
        {"type": "RuntimeHandlersSecure", "status": True, "reason": "", "message": ""},
    ],
    "sandboxes": {"ready": 6, "total": 7},
    "containers": {"created": 0, "running": 7, "exited": 1},
    "images": 3,
    "storage": {"driver": "overlay", "used_bytes": 1_243_500_000},
    "cgroup_driver": "systemd",
    "network": {"backend": "builtin"},
    "handlers": [
        {"name": "crun", "version": "1.21", "path": "/usr/bin/crun", "problem": ""},
        {"name": "runc", "version": "1.3.3", "path": "/usr/sbin/runc", "problem": ""},
    ],
}
_MISSING = (
    "registry.example/shop/report:7: not found: registry.example answers 404 MANIFEST_UNKNOWN"
)


def _id(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15 % (1 << 52):013x}" + "0" * 51


def node_page() -> str:
    """The page."""
    pods = {(ns, pod): _id(n) for n, (ns, pod, *_) in enumerate(_CONTAINERS, 1)}
    return page(
        _REPORT,
        pods=[
            *((pod, ns, "Ready", sandbox[:13]) for (ns, pod), sandbox in sorted(pods.items())),
            ("report-28412", "shop", "NotReady", _id(40)[:13]),
        ],
        containers=[
            (name, f"{ns}/{pod}", "Running", 0, _id(n)[:13])
            for n, (ns, pod, name, *_) in enumerate(sorted(_CONTAINERS), 20)
        ],
        images=[
            ("registry.example/shop/cart:12", "88.1 MB"),
            ("registry.example/shop/web:7", "61.4 MB"),
            ("registry.k8s.io/coredns/coredns:v1.12.1", "20.9 MB"),
        ],
        failures=[
            FailedCall(time.time() - 40, "PullImage", "NOT_FOUND", "shop/report-28412", _MISSING)
        ],
    )


def top() -> list[str]:
    """The lines of the screen."""
    numbered = list(enumerate(_CONTAINERS, 1))
    pods = {(ns, pod): _id(n + 50) for n, (ns, pod, *_) in numbered}
    seen = Seen(
        pods=[
            api.PodSandbox(
                id=sandbox,
                state=api.SANDBOX_READY,
                metadata=api.PodSandboxMetadata(name=pod, namespace=ns),
            )
            for (ns, pod), sandbox in pods.items()
        ],
        containers=[
            api.Container(
                id=_id(n),
                pod_sandbox_id=pods[ns, pod],
                state=api.CONTAINER_RUNNING,
                metadata=api.ContainerMetadata(name=name),
            )
            for n, (ns, pod, name, *_) in numbered
        ],
        usages=[
            Usage(
                _id(n), cpu_percent=cpu, memory_bytes=mem * _MIB, disk_bytes=disk * _MIB, inodes=9
            )
            for n, (_, _, _, cpu, mem, disk) in numbered
        ],
        load=(0.62, 0.48, 0.41),
    )
    return lines(seen, View(), height=14, width=96)


def svg(screen: list[str]) -> str:
    """A terminal with these lines, of which the third is the head of the table."""
    width, height = 96 * 8 + 32, len(screen) * 20 + 32
    rows = "\n".join(
        f'<text x="16" y="{at * 20 + 30}"{_BOLD if at == 2 else ""}'
        f' xml:space="preserve">{html.escape(line)}</text>'
        for at, line in enumerate(screen)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
        "<title>criagent top: seven containers sorted by processor time</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1d2430"/>\n'
        '<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="13" '
        f'fill="#dfe6ee">\n{rows}\n</g>\n</svg>\n'
    )


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "top.svg").write_text(svg(top()))
    measure = (
        "<script>addEventListener('load', () => document.title = document.documentElement"
        ".scrollWidth + ' of ' + innerWidth + ' ' + document.documentElement.scrollHeight)</script>"
    )
    sys.stdout.write(node_page().replace("</body>", f"{measure}</body>"))
