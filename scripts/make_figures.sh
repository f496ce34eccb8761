#!/usr/bin/env bash
# Draws all pictures in figs/: sets up .venv, trains the three small networks that some of them show, and runs every
# figs/draw_*.py. The other pictures are made of committed logs and tables, and of published figures.
# A second call does not train again. Interrupted training continues from the newest checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup requirements-dev.txt

for model in rsanet_tiny sda_tsm_tiny tsn_tiny; do
    .venv/bin/python main.py toy_something "$model" --run "figures_$model" --resume auto
done
for file in figs/draw_*.py; do
    module="${file%.py}"
    .venv/bin/python -m "${module//\//.}"
done
