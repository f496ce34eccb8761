#!/usr/bin/env bash
# Train on Something-Something V2: ./scripts/train_Something_v2.sh <run_name> <num_frames> [more flags of main.py]
# The model is $MODEL, or rsanet_r50 if that is not set. An existing run continues from its newest checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh
[ $# -ge 2 ] || usage "./scripts/train_Something_v2.sh <run_name> <num_frames> [more flags of main.py]"
run="$1" frames="$2"
shift 2
launch main.py something_v2 "${MODEL:-rsanet_r50}" --run "$run" --num_segments "$frames" --resume auto "$@"
