#!/usr/bin/env bash
# Copies images into a registry of yours:   scripts/images-mirror.sh REGISTRY <LIST
# Each line of LIST is a source and the name that it gets below REGISTRY, for example
#     .build/images/operator.tar                      operator:0.1.0
#     registry.example/kuberay/operator:v1.6.0        kuberay-operator:v1.6.0
# A source is an archive that `make images` wrote, or an image that can be pulled from here. Log in to both sides before.
# Takes skopeo where it is installed, which copies every platform of an image, else docker or podman.
set -euo pipefail

copy_with_skopeo() {
  local source=$1 target=$2
  if [[ -f $source ]]; then
    skopeo copy "docker-archive:$source" "docker://$target"
  else
    skopeo copy --all "docker://$source" "docker://$target"
  fi
}

copy_with_docker() {
  local source=$1 target=$2 archive=$1
  if [[ -f $archive ]]; then
    source=$("$program" load --quiet --input "$archive" | sed -n 's/^Loaded image: *//p')
    if [[ -z $source || $source == *$'\n'* ]]; then
      echo "$archive must hold one image under one name; $program found: ${source:-none}." \
        "Write it again with '$program save NAME:TAG'." >&2
      return 1
    fi
  else
    "$program" pull "$source"
  fi
  "$program" tag "$source" "$target"
  "$program" push "$target"
}

find_program() {
  local candidate
  for candidate in skopeo docker podman; do
    if command -v "$candidate" >/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "None of skopeo, docker and podman is installed here. Install one of them." >&2
  return 1
}

if [[ $# -ne 1 ]]; then
  echo "Usage: $0 REGISTRY <LIST, with a source and a name in each line" >&2
  exit 2
fi
program=$(find_program)
copy=copy_with_docker
[[ $program == skopeo ]] && copy=copy_with_skopeo
while read -r source name rest || [[ -n $source ]]; do   # the last line may lack its newline
  if [[ -z $source || $source == \#* ]]; then
    continue
  fi
  if [[ -z $name || -n $rest ]]; then
    echo "Expected a source and a name, found: $source $name $rest" >&2
    exit 2
  fi
  # The list is on standard input; a program that reads it would end the loop.
  "$copy" "$source" "${1%/}/$name" </dev/null
done
