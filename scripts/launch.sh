# The scripts that train and test source this file. It finds the interpreter and the GPUs and runs a program on them.

find_python() {
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
}

# Start one process per GPU, or one process on the CPU: launch <program> ...
launch() {
    find_python
    if [ "$gpus" -gt 1 ]; then
        # "--" is needed because torchrun takes the program's --run for an abbreviation of its own --run-path.
        exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus" -- "$@"
    fi
    exec "$python" "$@"
}

# Start the processes on several nodes that connect at host:port: launch_nodes <nodes> <host:port> <id> <program> ...
# If a process dies, all processes are started again, and the run continues from its newest checkpoint.
launch_nodes() {
    local nodes="$1" endpoint="$2" id="$3"
    shift 3
    find_python
    # Each start gets its own store. In the store that the agents share, processes look up keys by the number of
    # restarts. This number differs between nodes, because only a node that notices the death counts a restart.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    exec "$python" -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$((gpus > 1 ? gpus : 1))" \
        --rdzv_backend c10d --rdzv_endpoint "$endpoint" --rdzv_id "$id" --max_restarts 3 -- "$@"
}

usage() {
    echo "usage: $1" >&2
    exit 2
}
