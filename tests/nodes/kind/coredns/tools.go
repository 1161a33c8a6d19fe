// SPDX-License-Identifier: Apache-2.0
//go:build tools

// Package tools pins the version of CoreDNS that kubeadm's list of images names.
package tools

import _ "github.com/coredns/coredns"
