module cloister.dev/tests/cluster/flux

go 1.25.0

require github.com/fluxcd/kustomize-controller v1.7.3
