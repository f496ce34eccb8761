"""A stand-in for ``python`` that starts in a tenth of a second, because it forks a process that has imported torch.

``executable()`` returns a program with the command line ``[-u] [-W FILTER] FILE|-m MODULE|-c CODE ...``. It has the
working folder, environment, three streams, signals and exit status of a real process. It imports the project's packages
again, and its ``sys.executable`` is the stand-in. It differs from a real process in three points. Settings that are
read when the interpreter or torch starts, such as OMP_NUM_THREADS, are the server's. The program is not a child of the
stand-in. It exits without taking down the interpreter. Tests that depend on these points use the real
``sys.executable``.

Three processes take part. The client is the stand-in itself. The server forks a keeper for each client. The keeper
forks the program, passes signals on to it, and sends its exit status to the client.
"""

import atexit
import builtins
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

# The parts of packages that programs use and that take long to import. None of them looks for a GPU.
PRELOADED = ("av", "fvcore.nn", "matplotlib.pyplot", "tensorboardX", "torch.distributed.run", "torchvision", "yaml")
FORWARDED = (signal.SIGINT, signal.SIGTERM)

CLIENT = """\
#!{python} -IS
import json, os, select, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
signal.pthread_sigmask(signal.SIG_BLOCK, {forwarded})  # the request comes first
# Python's C handler writes the number of a signal here. A handler in Python would wait for the end of a blocking call.
numbers, written = socket.socketpair()
written.setblocking(False)
signal.set_wakeup_fd(written.fileno())
for number in {forwarded}:
    signal.signal(number, lambda *_: None)
socket.send_fds(server, [b"."], [0, 1, 2])
server.sendall(json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode() + b"\\n")
signal.pthread_sigmask(signal.SIG_UNBLOCK, {forwarded})
while server not in select.select([server, numbers], [], [])[0]:
    server.send(numbers.recv(1))
status = int(server.makefile().readline() or 1)
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@cache
def executable() -> str:
    """The path of the stand-in. The first call starts its server, which ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="quick_python-")
    program, address = Path(folder.name) / "python", str(Path(folder.name) / "socket")
    command = [sys.executable, "-W", "ignore", __file__, address]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.readline() == b"ready\n"
    text = CLIENT.format(python=sys.executable, address=address, forwarded=[int(number) for number in FORWARDED])
    program.write_text(text)
    program.chmod(0o755)

    def end() -> None:
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return str(program)


def serve(address: str) -> tuple[list[str], str, dict[str, str]]:
    """Accept clients until stdin closes. This function returns only in a process that becomes a client's program."""
    for name in PRELOADED:
        with suppress(ImportError):  # some are optional
            importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    gc.freeze()  # otherwise garbage collection would copy the shared memory of the programs
    print("ready", flush=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the tests closes stdin
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return keep(client)
        client.close()
    os._exit(0)


def keep(client: socket.socket) -> tuple[list[str], str, dict[str, str]]:
    """Fork the program and wait for it. If the client dies, the program and its process group are killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    with client.makefile() as file:
        request = json.loads(file.readline())
    program = os.fork()
    if program == 0:
        client.close()
        os.setpgid(0, 0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return request
    os.setpgid(program, program)  # also here, because the client may die before the program calls it
    for stream in streams:
        os.close(stream)
    end = os.pidfd_open(program)
    while end not in select.select([end, client], [], [])[0]:
        if numbers := client.recv(1):
            os.kill(program, numbers[0])
        else:
            os.killpg(program, signal.SIGKILL)
            break
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with suppress(OSError):
        client.sendall(f"{status}\n".encode())
    os._exit(0)


def become(words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run what the command ``words`` runs in ``folder``, in this process."""
    sys.executable = words.pop(0)
    random.seed(), np.random.seed()  # two programs must not draw the same numbers by chance
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    while words[0] in ("-u", "-W"):
        if words.pop(0) == "-u":
            sys.stdout.reconfigure(line_buffering=True)
        else:
            warnings.simplefilter(words.pop(0))
    kind = words.pop(0) if words[0] in ("-c", "-m") else None
    first = {None: str(Path(words[0]).resolve().parent), "-m": folder, "-c": ""}[kind]
    sys.path[0:1] = [first, *filter(None, environment.get("PYTHONPATH", "").split(":"))]
    sys.argv = list(words)
    if kind == "-m":
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[0] = "-c"
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": builtins})
    else:
        runpy.run_path(words[0], run_name="__main__")


def exit_status(words: list[str], folder: str, environment: dict[str, str]) -> int:
    """The exit status of the command ``words``. Uncaught exceptions are printed."""
    try:
        become(words, folder, environment)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    status = exit_status(*serve(sys.argv[1]))
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)  # a normal exit would copy the memory of all imported modules, which takes seconds
