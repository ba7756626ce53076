#!/bin/sh
# Measures sampling on one GPU, under 10 minutes: sh benchmarks/gpu.sh [--full] [--out=FILE]
# One JSON line per row, on the screen and in FILE (default gpu.jsonl). Rows that FILE holds already are not run again:
# after an interruption the same command goes on. --full samples whole songs instead of extrapolating.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
