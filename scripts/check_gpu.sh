#!/usr/bin/env bash
# Check that everything computes the same on this machine's GPU and on the CPU, in at most 8 minutes:
# ./scripts/check_gpu.sh [OUT.md] [more flags, see --help]. The last line says what agrees. Exit status 0: all of it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh
find_python
exec "$python" -m scripts.check_gpu "$@"
