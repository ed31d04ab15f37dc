#!/usr/bin/env bash
# The newest versions of everything that pyproject.toml allows, without constraints.txt, on each Python that is claimed:
#   tools/newest.sh [PYTHON_VERSION...] [-- PYTEST_ARGUMENT...]      default: 3.11 3.12 3.13, the tests of `make test`
# Each in an environment of its own under .newest/; what fails is told at the end. CI runs the pinned versions on one.
set -uo pipefail
cd "$(dirname "$0")/.."
versions=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  versions+=("$1")
  shift
done
[ $# -eq 0 ] || shift
tests=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(3.11 3.12 3.13)
[ ${#tests[@]} -gt 0 ] || tests=(-n 2 --dist loadfile)
uv=$(command -v uv || echo .venv/bin/uv)
failed=()
for version in "${versions[@]}"; do
  venv=.newest/$version
  echo "== Python $version"
  if "$uv" venv --quiet --clear --python "$version" "$venv" &&
    "$uv" pip install --quiet --upgrade --python "$venv/bin/python" --editable ".[dev]" &&
    "$venv/bin/sightline" triton install &&
    "$uv" pip freeze --python "$venv/bin/python" > ".newest/$version.txt" &&
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE "$venv/bin/python" -m pytest -q -m "not slow and not gpu" "${tests[@]}"; then
    echo "== Python $version: as it should be; its versions are in .newest/$version.txt"
  else
    failed+=("$version")
  fi
done
[ ${#failed[@]} -eq 0 ] || { echo "failed with the newest versions: ${failed[*]}"; exit 1; }
