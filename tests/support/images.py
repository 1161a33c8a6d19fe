# SPDX-License-Identifier: Apache-2.0
"""Images that the agent lists, and what it counts for them."""

from __future__ import annotations

from tests.support.cri_client import Cri, api


def listed(cri: Cri) -> dict[str, api.Image]:
    return {tag: image for image in cri.images() for tag in image.repo_tags}


def usage(cri: Cri) -> tuple[int, int]:
    info = cri.image.ImageFsInfo(api.ImageFsInfoRequest()).image_filesystems[0]
    return info.used_bytes.value, info.inodes_used.value
