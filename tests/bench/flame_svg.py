# SPDX-License-Identifier: Apache-2.0
"""A tree of CPU time as a picture: each frame as wide as its time, its calls below it. Pure."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterator
from html import escape

from tests.bench.flame_fold import Frame

_WIDTH, _ROW, _TOP = 1200, 17, 30
_LETTER = 6.1  # px of one letter
_LEAST_PX = 2.0  # narrower frames are left out
_HUES = {"criagent": 212, "crun": 24, "conmon": 140}
_OTHER_HUE, _KERNEL_HUE = 280, 0


def drawn(root: Frame, title: str) -> str:
    """The picture as an SVG document. A pointer over a frame shows its name and its time."""
    frames = list(_placed(root))
    height = _TOP + _ROW * (1 + max(depth for _, depth, _, _ in frames)) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        '<g font-family="DejaVu Sans, Verdana, sans-serif" font-size="11" fill="#111">',
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>',
    ]
    scale = _WIDTH / root.value
    for frame, depth, start, colour in frames:
        x, y, width = start * scale, _TOP + depth * _ROW, frame.value * scale
        name = f"{frame.name}: {frame.value:.2f} ms"
        lines.append(
            f'<g><title>{escape(name)}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" '
            f'height="{_ROW - 1}" fill="{colour}"/>'
        )
        text = name if len(name) * _LETTER < width - 6 else frame.name
        if (letters := int((width - 6) / _LETTER)) >= 3:
            shown = text if len(text) <= letters else text[: letters - 1] + "…"
            lines.append(f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(shown)}</text>')
        lines.append("</g>")
    return "\n".join([*lines, "</g>", "</svg>", ""])


def _placed(root: Frame) -> Iterator[tuple[Frame, int, float, str]]:
    """Every frame that is wide enough, with its depth, its left edge in ms and its colour."""
    least = root.value * _LEAST_PX / _WIDTH
    waiting = [(root, 0, 0.0, -1)]
    while waiting:
        frame, depth, start, hue = waiting.pop()
        if depth == 1:
            hue = _HUES.get(frame.name, _OTHER_HUE)
        if frame.name == "kernel":
            hue = _KERNEL_HUE
        yield frame, depth, start, _colour(frame.name, hue)
        for inner in sorted(frame.within.values(), key=lambda f: -f.value):
            if inner.value >= least:
                waiting.append((inner, depth + 1, start, hue))
            start += inner.value


def _colour(name: str, hue: int) -> str:
    if hue < 0:
        return "#ddd"
    shade = hashlib.sha256(name.encode()).digest()[0] % 14
    parts = colorsys.hls_to_rgb(hue / 360, (70 + shade) / 100, 0.7)
    return "#" + "".join(f"{round(part * 255):02x}" for part in parts)
