# Sourced by the scripts beside it: sets UV to a working uv, without installing anything outside the checkout.
# shellcheck shell=bash

bootstrap_uv=.build/uv

find_uv() {
  # Asked, not looked up: a version manager's shim may exist without a uv behind it.
  if uv --version >/dev/null 2>&1; then
    UV=uv
    return
  fi
  UV=$bootstrap_uv/bin/uv
  if cmp -s requirements/uv.txt "$bootstrap_uv/requirements.txt" && "$UV" --version >/dev/null 2>&1; then
    return
  fi
  echo "No uv on the PATH: installing one from requirements/uv.txt into $bootstrap_uv." >&2
  rm -rf "$bootstrap_uv"
  if ! python3 -m venv "$bootstrap_uv"; then
    echo "python3 -m venv does not work here. Install Python's venv module (on Debian and Ubuntu: apt install" \
      "python3-venv), or uv, then run this again." >&2
    return 1
  fi
  "$bootstrap_uv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
    --requirement requirements/uv.txt
  cp requirements/uv.txt "$bootstrap_uv/requirements.txt"
}
