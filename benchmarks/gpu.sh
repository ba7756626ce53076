#!/bin/sh
# Measures sampling on one GPU, under 10 minutes: sh benchmarks/gpu.sh [--full] [--out=FILE] [--model=...] [--dtype=...] [--n=...]
# One JSON line per row, on the screen and in FILE (default gpu.jsonl). Rows that FILE holds already are not run again:
# after an interruption the same command goes on. --full samples whole songs instead of extrapolating, and goes on behind
# its last window. --rehearse runs the same program with small nets on a CPU.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
