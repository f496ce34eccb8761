#!/usr/bin/env bash
# Check that this machine's GPU and CPU compute the same, and measure the GPU's speed, in at most 90 minutes:
# ./scripts/check_gpu.sh [OUT.md] [--minutes M] [--resume] [more flags, see --help]. The last line says which checks
# agree. If all agree and everything was measured, the exit status is 0.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh
find_python
exec "$python" -m scripts.check_gpu "$@"
