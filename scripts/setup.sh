# quickstart.sh, make_figures.sh and run_tests.sh source this file. It makes .venv, installs a requirements file once,
# and checks the installation. The interpreter is $PYTHON, or python3 if that is not set.

setup() {
    local requirements="$1" python="${PYTHON:-python3}" stamp
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "error: $python is not Python 3.10 or newer; set PYTHON to one that is" >&2
        return 1
    fi
    stamp=".venv/.installed-$(cat requirements.txt "$requirements" | cksum | cut -d ' ' -f 1)"
    if [ ! -e "$stamp" ]; then
        echo "installing $requirements into .venv (torch is large: about 5 GB, minutes)"
        if ! .venv/bin/python -m pip --version >/dev/null 2>&1 && ! "$python" -m venv .venv; then
            echo "error: '$python -m venv' failed; install your system's python venv package, or set PYTHON" >&2
            return 1
        fi
        .venv/bin/python -m pip install --disable-pip-version-check --quiet -r "$requirements"
    fi
    if ! .venv/bin/python -c 'import torch, torchvision; torchvision.ops.nms' 2>.venv/import-error; then
        echo "error: torch and torchvision do not fit each other: $(tail -n 1 .venv/import-error)" >&2
        echo "       .venv/bin/pip list | grep torch shows the pair; remove .venv and start again, or install a pair" \
            "built for each other (a CPU-only torch does not fit a torchvision built for CUDA)" >&2
        return 1
    fi
    touch "$stamp"
}
