# SPDX-License-Identifier: Apache-2.0
"""The fixtures of tests.support.vm_fixtures."""

from tests.support.vm_fixtures import cri, images, nothing_leaks, pods

__all__ = ["cri", "images", "nothing_leaks", "pods"]
