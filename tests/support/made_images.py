# SPDX-License-Identifier: Apache-2.0
"""Images that a test makes for itself: a shell, and whatever else the test puts in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import image_builder
from tests.support.cri_client import Cri, api
from tests.support.image_archives import archive, succeed
from tests.support.images import listed

MADE = "registry.test/own"
HANDLERS = ("crun", "runc")
_APPLETS = (
    "sh cat cp dd df echo env grep head hostname id ls mkdir mount ping rm sleep stat test touch wc"
)


class ImageMaker:
    """Imports images; `clean` removes them."""

    def __init__(self, cri: Cri) -> None:
        self._cri = cri
        self._number = 0

    def __call__(
        self, fill: Callable[[image_builder.Layer], object] = lambda _: None, **config: Any
    ) -> str:
        """The tag of an image with a shell, what `fill` adds, and `config` of its own."""
        base, layer = image_builder.Layer(), image_builder.Layer()
        base.file("bin/busybox", Path("/usr/bin/busybox").read_bytes())
        for applet in _APPLETS.split():
            base.symlink(f"bin/{applet}", "busybox")
        base.file("etc/passwd", b"root:x:0:0::/:/bin/sh\n", 0o644)
        fill(layer)
        self._number += 1
        tag = f"{MADE}:{self._number}"
        succeed("import", "-", data=archive([base.tar(), layer.tar()], tag, **config))
        return tag

    def clean(self) -> None:
        """Containers first, then what was made."""
        cri = Cri()
        for container_id in cri.containers():
            cri.remove(container_id.id)
        for tag in listed(cri):
            if tag.startswith(MADE):
                cri.remove_image(tag)
        cri.close()


def of(
    image: str, *more: Callable[[api.ContainerConfig], object]
) -> Callable[[api.ContainerConfig], None]:
    """A change of a container's configuration: its image, then `more`."""

    def change(config: api.ContainerConfig) -> None:
        config.image.image = image
        for one in more:
            one(config)

    return change
