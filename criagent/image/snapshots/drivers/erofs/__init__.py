# SPDX-License-Identifier: Apache-2.0
"""The storage driver erofs: layers as images that are mounted, and joined by overlayfs."""
