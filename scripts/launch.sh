# Sourced by the train_* and test_* scripts: runs a program on every GPU there is, or in one process on none.

launch() {
    local python gpus
    if [ -x .venv/bin/python ]; then
        python=.venv/bin/python
    else
        python=$(command -v python || command -v python3 || echo python3)
    fi
    if ! gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())'); then
        echo "error: $python has no torch; run ./scripts/quickstart.sh once, or activate an environment with" \
            "requirements.txt installed" >&2
        exit 1
    fi
    if [ "$gpus" -gt 1 ]; then
        # "--", because torchrun takes the program's --run for an abbreviation of its own --run-path.
        exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus" -- "$@"
    fi
    exec "$python" "$@"
}

usage() {
    echo "usage: $1" >&2
    exit 2
}
