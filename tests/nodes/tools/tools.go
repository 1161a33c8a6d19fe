// SPDX-License-Identifier: Apache-2.0
//go:build tools

// Package tools pins the versions of the Kubernetes clients that the tests drive.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
