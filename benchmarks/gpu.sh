#!/usr/bin/env bash
# All checks that need a GPU, in less than eight minutes: tests marked cuda, the table of the engine with the agreement of
# GPU and processor, and networks of real size. Usage: PYTHON=.venv/bin/python benchmarks/gpu.sh [FOLDER for the JSON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-.}
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU here"; print(torch.cuda.get_device_name(0))'
"$python" -m pytest -q -m cuda tests/engine
timeout 200 "$python" -m benchmarks.engine --device cuda --repeats 3 --trials 1200 --json | tee "$out/gpu-engine.json"
timeout 200 "$python" -m benchmarks.networks --device cuda --lanes 512 --repeats 1 --trials 20 --json \
    --only resnet50 --only gpt2 | tee "$out/gpu-networks.json"
