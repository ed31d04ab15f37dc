#!/usr/bin/env bash
# Generate the committed gRPC stubs from the protos: protos/generate.sh OUT_DIR (default: client).
# The generator is old on purpose: stubs refuse a runtime older than the generator that made them.
# Names on the wire stay the same (sightline_scorer.v1); only the Python import becomes sightline.scorer.v1.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-client}
venv=.venv/protos
if [ ! -x "$venv/bin/protoc-gen-mypy_grpc" ]; then
  "${PYTHON:-.venv/bin/python}" -m venv "$venv"
  "$venv/bin/pip" install --quiet "grpcio-tools==1.76.0" "mypy-protobuf==4.0.0" "setuptools<81"
fi
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
for pair in scorer:scorer sampler:sampler trainer:runs; do
  service=${pair%:*} package=${pair#*:}
  "$venv/bin/python" -m grpc_tools.protoc -Iprotos \
    --plugin="protoc-gen-mypy_grpc=$venv/bin/protoc-gen-mypy_grpc" \
    --python_out="$made" --pyi_out="$made" --grpc_python_out="$made" --mypy_grpc_out=quiet:"$made" \
    "protos/sightline_$service/v1/$service.proto"
  sed -i -E "s/^(from|import) sightline_$service\.v1/\1 sightline.$package.v1/; s/\bsightline_$service\.v1\.${service}_pb2\b/sightline.$package.v1.${service}_pb2/g" \
    "$made/sightline_$service/v1/"*_pb2_grpc.py "$made/sightline_$service/v1/"*.pyi
  mkdir -p "$out/sightline/$package/v1"
  cp "$made/sightline_$service/v1/"* "$out/sightline/$package/v1/"
done
