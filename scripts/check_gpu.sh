#!/usr/bin/env bash
# Check that this machine's GPU and CPU compute the same, in at most 8 minutes:
# ./scripts/check_gpu.sh [OUT.md] [more flags, see --help]. The last line says which checks agree. If all agree, the
# exit status is 0.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh
find_python
exec "$python" -m scripts.check_gpu "$@"
