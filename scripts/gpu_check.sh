#!/usr/bin/env bash
# Run the whole pipeline on this machine's GPUs, with Ray Train on NCCL, and say pass or fail by scripts/gpu_check.yaml.
#
#   scripts/gpu_check.sh [key=value ...]      such as output=/data/check train.compile=true
#
# One training worker and one encoder per GPU. A run that was stopped goes on where it was; a finished one is judged
# again. Not run on a GPU yet.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
gpus=$("$python" -m scripts.gpu_check gpus)  # refuses a machine on which NCCL does not work
settings=$("$python" scripts/data.py)
# shellcheck disable=SC2206  # settings have no blanks
all=($settings "cluster.num_workers=$gpus" "cluster.encoders=$gpus" "$@")
"$python" pipelines/run.py --config conf/fashion_mnist_gpu.yaml "${all[@]}"
exec "$python" -m scripts.gpu_check judge --config conf/fashion_mnist_gpu.yaml "${all[@]}"
