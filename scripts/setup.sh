#!/usr/bin/env bash
# Makes .venv exactly what requirements/dev.txt and model.txt lock, with Cloister's own packages installed editable.
# Takes Python 3.11 to 3.13 from the PATH (PYTHON=... chooses one); where there is none, uv fetches one. Nothing outside
# the checkout changes, apart from what uv keeps: its cache, and a Python that it fetched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/uv.sh
source scripts/uv.sh

stamp=.venv/cloister-setup
inputs=(scripts/setup.sh requirements/dev.txt requirements/model.txt crds/pyproject.toml operator/pyproject.toml
  trainer/pyproject.toml)

fingerprint() {
  echo "${PYTHON:-}"
  cksum "${inputs[@]}"
}

# Newer Pythons wait for Ray's and torch's wheels.
fits='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'

# 3.11 first: the version that the locks are made for and the tests run with.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c "$fits" 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
    if [[ $candidate == "${PYTHON:-}" ]]; then
      echo "PYTHON=$PYTHON is no Python 3.11, 3.12 or 3.13: name one of those, or leave PYTHON out." >&2
      return 1
    fi
  done
  echo "No Python 3.11 to 3.13 on the PATH: asking uv for 3.11. If that fails, install one, or set PYTHON." >&2
  echo 3.11
}

if [[ -x .venv/bin/python && -f $stamp && $(fingerprint) == "$(<"$stamp")" ]]; then
  exit 0
fi

find_uv
python=$(find_python)
echo "Setting up .venv. The first time this fetches several GB; a progress bar shows on a terminal." >&2
if ! .venv/bin/python -c "$fits" 2>/dev/null || [[ -n ${PYTHON:-} ]]; then
  "$UV" venv --quiet --clear --python "$python" .venv
fi
# Bytecode at installation, or PYTHONDONTWRITEBYTECODE=1 would make every import compile again.
"$UV" pip sync --python .venv --require-hashes --compile-bytecode requirements/dev.txt requirements/model.txt
"$UV" pip install --quiet --python .venv --no-deps --no-build-isolation -e crds -e operator -e trainer
fingerprint >"$stamp"
