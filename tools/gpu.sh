#!/usr/bin/env bash
# Measure everything that needs a GPU, in one command without a network.
#
#   tools/gpu.sh OUT                          all steps, about eleven minutes on one H100 or H200
#   tools/gpu.sh --dry OUT                    the same steps with tiny shapes, on a CPU too: three minutes
#   tools/gpu.sh --only card,parity OUT       some steps
#
# Each step is a separate process with its own time limit and writes its rows as it measures them (OUT/STEP.jsonl). A
# step that fails says why, and the next step starts. OUT/gpu.json has all rows. If trl is missing, the wheels in
# $SIGHTLINE_WHEELS (default .whl, made by tools/gpu-wheels.sh) are installed first.
set -u
cd "$(dirname "$0")/.."
dry="" only="card,parity,towers,decode,update,service,loop,turns,attention,qlora" out=""
while [ $# -gt 0 ]; do
  case $1 in
    --dry) dry=--dry ;;
    --only) only=$2; shift ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "unknown option $1" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
out=$(realpath -m "${out:-runs/gpu}")
mkdir -p "$out"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
wheels=${SIGHTLINE_WHEELS:-.whl}
packages=$PWD/client:$PWD/services/chassis:$PWD/services/scorer:$PWD/services/sampler:$PWD/services/trainer:$PWD/playground:$PWD/cli
export PYTHONPATH=$packages:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
if ! "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("trl") is None)' && ls "$wheels"/*.whl > /dev/null 2>&1; then
  # A venv over the machine's Python: Triton's stub finds packages by the interpreter, not by PYTHONPATH.
  venv=/tmp/sightline-venv
  "$python" -m venv --without-pip "$venv" || exit 1
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/below.pth"
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl || exit 1
  python=$venv/bin/python
fi
if [ -f "$wheels/triton.tar.xz" ] && [ -z "${SIGHTLINE_TRITON_HOME:-}" ] && [ ! -d .triton ]; then
  mkdir -p /tmp/sightline-triton && tar xJf "$wheels/triton.tar.xz" -C /tmp/sightline-triton
  export SIGHTLINE_TRITON_HOME=/tmp/sightline-triton
fi
declare -A limit=([card]=40 [parity]=120 [towers]=130 [decode]=150 [update]=200 [service]=150 [loop]=80 [turns]=200 [attention]=80 [qlora]=110)
for step in ${only//,/ }; do
  echo "== $step"
  seconds=${limit[$step]:-60}
  [ -z "$dry" ] || seconds=$((4 * seconds)) # dry runs are for machines with other work to do
  timeout -k 5 "$seconds" "$python" tools/gpu/"$step".py --out "$out" $dry 2> "$out/$step.log"
  code=$?
  if [ $code -ne 0 ]; then
    echo "$step ended with $code"
    tail -n 5 "$out/$step.log"
    "$python" - "$out/$step.jsonl" "$step" $code <<'PY'
import json, sys
with open(sys.argv[1], "a") as file:
    what = "exceeded its time limit" if sys.argv[3] in ("124", "137") else f"ended with code {sys.argv[3]}"
    file.write(json.dumps({"name": f"gpu_{sys.argv[2]}", "error": what}) + "\n")
PY
  fi
done
"$python" tools/gpu/collect.py "$out" $dry ${only//,/ }
