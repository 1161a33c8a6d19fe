// SPDX-License-Identifier: Apache-2.0
//go:build tools

// Package tools names the programs that the tests build; go.mod says which versions.
package tools

import _ "github.com/sigstore/cosign/v3/cmd/cosign"
