module cloister.dev/tests/cluster/kserve

go 1.25.0

require github.com/kserve/kserve v0.19.0
