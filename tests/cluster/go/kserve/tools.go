//go:build tools

// Package tools: nothing of this module is built; only its manifests are taken.
package tools
