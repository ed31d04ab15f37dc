#!/usr/bin/env bash
# Collect what a GPU machine without a network may lack, under 64 MiB, in .whl/ (ignored by git).
#
#   tools/gpu-wheels.sh [FOLDER]              packages for Python 3.12, and Triton from .triton
#
# bitsandbytes' wheel (43 MB) holds a library for each release of CUDA; only the one for CUDA 13.0 is kept. The machine
# must have torch, torchvision, timm, pillow, numpy and the like. tools/gpu.sh installs what it finds here.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-.whl}
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
rm -rf "$folder"
mkdir -p "$folder"
names=(accelerate annotated-types bitsandbytes cachetools cffi cryptography datasets dill ftfy googleapis-common-protos grpcio grpcio-health-checking grpcio-reflection
  httpx liger-kernel multiprocess open_clip_torch peft protobuf pycparser pydantic pydantic_core python-rapidjson transformers tritonclient trl typing-inspection wcwidth)
wanted=()
for name in "${names[@]}"; do
  wanted+=("$(grep -iE "^${name//[-_]/[-_]}==" constraints.txt || echo "$name")")
done
platforms=()
for number in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${number}_x86_64"); done
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$folder" "${wanted[@]}"
zip -q -d "$folder"/bitsandbytes-*.whl '*_rocm*.so' '*_xpu*.so' '*_cuda11*.so' '*_cuda12*.so' '*_cuda132.so'
# Of Triton, take the server, the Python backend and its stub for Python 3.12. Only an XML reader that Triton never calls
# needs ICU's tables, a third of the size, so an empty library replaces them.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd .triton && cp -r --parents nvidia_pytriton.libs pytriton/tritonserver/bin pytriton/tritonserver/backends \
  pytriton/tritonserver/python_backend_stubs/3.12 "$scratch")
rm "$scratch"/nvidia_pytriton.libs/libpython3-*
strip --strip-unneeded "$scratch"/nvidia_pytriton.libs/libtritonserver-* "$scratch"/pytriton/tritonserver/bin/tritonserver
tables=$(basename "$scratch"/nvidia_pytriton.libs/libicudata-*)
echo 'const char icudt70_dat[4096] __attribute__((aligned(16))) = {0};' | gcc -x c -shared -fPIC -Wl,-soname,"$tables" \
  -o "$scratch/nvidia_pytriton.libs/$tables" -
tar c -C "$scratch" . | xz -T0 > "$folder/triton.tar.xz"
size=$(du -sm "$folder" | cut -f1)
echo "$folder: $size MiB"
[ "$size" -lt 64 ] || { echo "$folder has $size MiB; at most 63 fit into one call" >&2; exit 1; }
