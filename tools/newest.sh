#!/usr/bin/env bash
# Test the newest versions that pyproject.toml allows, without constraints.txt, on each supported Python:
#   tools/newest.sh [--again] [PYTHON_VERSION...] [-- PYTEST_ARGUMENT...]
# The default is 3.11 3.12 3.13 and the tests of `make test`. Each version has its own environment under .newest/. An
# interrupted run continues: complete environments are kept, and tests that passed (.newest/VERSION.passed) are skipped,
# unless you pass --again. Failures are listed at the end. CI runs the pinned versions on one Python.
set -uo pipefail
cd "$(dirname "$0")/.."
versions=() again=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  if [ "$1" = --again ]; then again=1; else versions+=("$1"); fi
  shift
done
[ $# -eq 0 ] || shift
tests=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(3.11 3.12 3.13)
[ ${#tests[@]} -gt 0 ] || tests=(-n 2 --dist loadfile)
uv=$(command -v uv || echo "$PWD/.venv/bin/uv")
failed=()
mkdir -p .newest
for version in "${versions[@]}"; do
  venv=.newest/$version versions_file=.newest/$version.txt passed=.newest/$version.passed
  [ -z "$again" ] || rm -f "$versions_file" "$passed"
  echo "== Python $version"
  if { [ -s "$versions_file" ] ||
    { "$uv" venv --quiet --clear --python "$version" "$venv" &&
      "$uv" pip install --quiet --upgrade --python "$venv/bin/python" --editable ".[dev]" uv &&
      "$venv/bin/sightline" triton install &&
      "$uv" pip freeze --python "$venv/bin/python" > "$versions_file"; }; } &&
    PASSED_TESTS="$PWD/$passed" PYTHONPATH="tools${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
      "$venv/bin/python" -m pytest -q -p passed_tests -m "not slow and not gpu" "${tests[@]}"; then
    echo "== Python $version: passed; its versions are in $versions_file"
  else
    failed+=("$version")
  fi
  [ ! -f "$passed" ] || echo "== Python $version: $(sort -u "$passed" | wc -l) tests have passed"
done
[ ${#failed[@]} -eq 0 ] || { echo "failed with the newest versions: ${failed[*]}"; exit 1; }
