#!/usr/bin/env bash
# Sets up .venv, then runs the tests: ./scripts/run_tests.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup requirements-dev.txt
exec .venv/bin/python -m pytest "$@"
