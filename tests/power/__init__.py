# SPDX-License-Identifier: Apache-2.0
"""Power cuts: every write of a disk recorded, then the disk as a cut at any moment leaves it."""
