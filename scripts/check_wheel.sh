#!/usr/bin/env bash
# Build the sdist, the wheel from it, install that into an empty environment, and train 5 steps outside the repository.
# Usage: scripts/check_wheel.sh PYTHON MATURIN
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 maturin=$(realpath "$2") repository=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist
"$maturin" sdist --out dist
tar -xzf dist/*.tar.gz -C "$work"
(cd "$work"/grmlight-* && "$maturin" build --release --locked --out "$repository/dist")

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --constraint constraints.txt dist/*.whl
cp -r configs "$work/configs"
cd "$work"
GRMLIGHT_CACHE="$work/cache" "$work/venv/bin/grmlight" fit --config configs/grm.yaml --trainer.max_steps 5 \
    --trainer.enable_progress_bar false
"$work/venv/bin/python" -c 'import grmlight; print("trained 5 steps with", grmlight.__file__)'
ls -l "$repository/dist"
