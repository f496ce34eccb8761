#!/usr/bin/env bash
# Test an ensemble: ./scripts/ensemble.sh DATASET <file,file> <frames,frames> [more flags of test_models.py]
# Use --protocol sda_full --views 3x2 for the papers' (16+8)x3x2. A released SDA file also needs --model.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh
[ $# -ge 3 ] || usage "./scripts/ensemble.sh DATASET <file,file> <frames,frames> [more flags of test_models.py]"
dataset="$1" files="$2" frames="$3"
shift 3
launch test_models.py "$dataset" --weights "$files" --num_segments "$frames" "$@"
