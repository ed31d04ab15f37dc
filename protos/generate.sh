#!/usr/bin/env bash
# Makes the committed gRPC stubs from the protos: protos/generate.sh OUT_DIR (default: services).
# The generator is old on purpose: stubs refuse a runtime older than the generator that made them.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-services}
venv=.venv/protos
if [ ! -x "$venv/bin/protoc-gen-mypy_grpc" ]; then
  "${PYTHON:-.venv/bin/python}" -m venv "$venv"
  "$venv/bin/pip" install --quiet "grpcio-tools==1.76.0" "mypy-protobuf==4.0.0" "setuptools<81"
fi
for service in scorer sampler trainer; do
  mkdir -p "$out/$service"
  "$venv/bin/python" -m grpc_tools.protoc -Iprotos \
    --plugin="protoc-gen-mypy_grpc=$venv/bin/protoc-gen-mypy_grpc" \
    --python_out="$out/$service" --pyi_out="$out/$service" \
    --grpc_python_out="$out/$service" --mypy_grpc_out=quiet:"$out/$service" \
    "protos/sightline_$service/v1/$service.proto"
done
