// SPDX-License-Identifier: Apache-2.0
//go:build tools

// Package tools pins the version of checkpointctl, which the tests ask for what is in an archive.
package tools

import _ "github.com/checkpoint-restore/checkpointctl"
