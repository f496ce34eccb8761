#!/usr/bin/env bash
# Test on Something-Something V2: ./scripts/test_Something_v2.sh <run_name> <ckpt_name> <num_frames> [more flags of test_models.py]
# The checkpoint is net_runs/<run_name>/<ckpt_name>. Add --model for a released SDA file. Other files name their model.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh
[ $# -ge 3 ] || usage "./scripts/test_Something_v2.sh <run_name> <ckpt_name> <num_frames> [more flags of test_models.py]"
run="$1" checkpoint="$2" frames="$3"
shift 3
launch test_models.py something_v2 --weights "net_runs/$run/$checkpoint" --num_segments "$frames" "$@"
