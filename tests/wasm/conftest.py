# SPDX-License-Identifier: Apache-2.0
"""The fixtures of tests/e2e."""

from tests.e2e.conftest import cri, images, make_image, nothing_leaks, pods

__all__ = ["cri", "images", "make_image", "nothing_leaks", "pods"]
