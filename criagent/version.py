# SPDX-License-Identifier: Apache-2.0
"""The version of this package; the build reads it from here too."""

VERSION = "0.2.0"
