#!/usr/bin/env bash
# From a fresh checkout to Top-1/Top-5: sets up .venv, draws the toy set, trains and tests two small networks on it.
# A second call skips the steps that are done. Interrupted training continues from the newest checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup requirements.txt

files=()
part=0
for model in rsanet_tiny tsn_tiny; do
    run="quickstart_$model"
    scores="net_runs/$run/scores.npz"
    part=$((part + 1))
    if [ ! -e "$scores" ]; then
        echo
        echo "=== network $part of 2: $model learns the toy set (10 epochs) and is tested ==="
        .venv/bin/python main.py toy_something "$model" --run "$run" --resume auto
        .venv/bin/python test_models.py toy_something \
            --weights "net_runs/$run/resnet_rgb_model_best.pth.tar" --scores "$scores"
    fi
    files+=("$scores")
done

echo
.venv/bin/python -m scripts.print_results "${files[@]}"
echo
echo "Chance is 8.33. Each class is another one played backwards: a model that averages per-frame scores stays near 50."
echo "logs: logs/quickstart_*.log   checkpoints, TensorBoard: net_runs/quickstart_*"
echo
echo "Next, for example:"
echo "    source .venv/bin/activate"
echo "    python -m scripts.read_logs logs/quickstart_*.log"
echo "    python -m scripts.report ${files[0]}"
