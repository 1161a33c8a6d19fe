# SPDX-License-Identifier: Apache-2.0
"""The configuration: sections with their keys, reading, checks, and its texts."""
