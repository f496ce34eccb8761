# Sourced by the train_* and test_* scripts: runs a program on every GPU there is, or in one process on none.

launch() {
    local python=python gpus
    [ -x .venv/bin/python ] && python=.venv/bin/python
    gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
    if [ "$gpus" -gt 1 ]; then
        # "--": up to Python 3.11 torchrun takes the program's --run for an abbreviation of its own --run-path.
        exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus" -- "$@"
    fi
    exec "$python" "$@"
}

usage() {
    echo "usage: $1" >&2
    exit 2
}
