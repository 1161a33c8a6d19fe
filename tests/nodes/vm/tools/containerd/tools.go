// SPDX-License-Identifier: Apache-2.0
//go:build tools

// Package tools pins the version of the containerd that the idle test measures beside criagent.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
)
