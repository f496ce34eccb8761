#!/usr/bin/env bash
# Train on several nodes. Run the same command on each node:
# ./scripts/train_nodes.sh <nodes> <host:port> <run_name> DATASET MODEL [more flags of main.py]
# <host> is one of the nodes, and <port> is a free port on it. All nodes must see this folder under the same path,
# because it holds the run's checkpoints.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh
[ $# -ge 5 ] || usage "./scripts/train_nodes.sh <nodes> <host:port> <run_name> DATASET MODEL [more flags of main.py]"
nodes="$1" endpoint="$2" run="$3"
shift 3
launch_nodes "$nodes" "$endpoint" "$run" main.py "$@" --run "$run" --resume auto
