"""Functions that work for one process and for many processes (started by torchrun)."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.messages import one_line
from models.video_network import SizeError

from .config import ConfigError
from .interrupt import EXIT_CODE, Stopped
from .memory import keep_freed_memory
from .workers import kill_loading_processes


def init(device: str | None) -> torch.device:
    """Join torchrun's process group, if there is one, and set up the device of this process.

    ``device`` is ``"cpu"``, ``"cuda"``, or ``None``: a GPU if there is one, otherwise the CPU.

    Errors: ``ConfigError`` if there is no GPU for this process.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but torch sees no GPU; use --device cpu or a torch build for your driver")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this node has no GPU of its own ({torch.cuda.device_count()} seen); "
                "lower --nproc_per_node"
            )
        torch.cuda.set_device(local)
    else:
        keep_freed_memory()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        # gloo is used in addition to NCCL, for values that only the host needs (sums of losses, a stop).
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=1))
    return torch.device(device, local) if device == "cuda" else torch.device(device)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def main_process_first() -> Iterator[None]:
    """Rank 0 runs the body first and writes the files; the other ranks wait, then run it.

    If rank 0 fails, it reports the error and the other ranks exit without running the body. Do not nest this.
    """
    done = [True]
    if not dist.is_initialized():
        yield
    elif is_main():
        try:
            yield
        except BaseException:
            done[0] = False
            raise
        finally:
            dist.broadcast_object_list(done)
    else:
        dist.broadcast_object_list(done)
        if not done[0]:
            os._exit(1)
        yield


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model for training. It is wrapped in DistributedDataParallel if there are several processes."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum ``values`` over all processes, in place. All processes get the result."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def broadcast_buffers(model: nn.Module) -> None:
    """Broadcast the BN statistics of rank 0, because the checkpoint holds these.

    DistributedDataParallel broadcasts them before each training step, but after a step each process has its own.
    """
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def gather_objects(value: object) -> list:
    """The values of all processes in rank order. All processes get the list."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def fail_together(error: Exception) -> NoReturn:
    """Raise an error that all processes have found. Only rank 0 reports it; the other ranks exit."""
    if not is_main():
        with suppress(RuntimeError):  # this waits until rank 0 has exited, because rank 0 never joins the sum
            all_sum(torch.zeros(1))
        os._exit(1)
    raise error


def run_program(main: Callable[[], None], errors: tuple[type[Exception], ...]) -> None:
    """Run ``main`` and end the process, without waiting for loading processes or other ranks.

    Exit status: 0 after success; 1 after an error; ``interrupt.EXIT_CODE`` if the run was asked to stop and has saved;
    130 after Ctrl-C. An expected error (``errors``, too little memory, a wrong frame size, a lost rank) is reported in
    one line, a bug with a traceback. A rank that fails does not wait for the other ranks, because torchrun ends them.
    """
    try:
        main()
    except Stopped:
        _leave(EXIT_CODE)
    except KeyboardInterrupt:
        _fail("interrupted", 128 + signal.SIGINT)
    except errors as error:
        _fail(str(error))
    except Exception as error:
        if (reason := _expected(error)) is None:
            traceback.print_exc()
            _leave(1)
        _fail(reason)
    if dist.is_initialized():
        dist.destroy_process_group()


def _expected(error: Exception) -> str | None:
    """The message for an error of PyTorch or the network that the user can fix; ``None`` for a bug."""
    text = str(error)
    if isinstance(error, SizeError):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        remedy = "lower --batch_size, or try --precision bf16 or --activation_checkpointing true"
        return f"the GPU's memory does not suffice ({text.splitlines()[0]}); {remedy}"
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "bad_alloc" in text:
        return f"the memory does not suffice ({one_line(text) or 'MemoryError'}); lower --batch_size or --workers"
    if text.startswith("Expected more than 1 value per channel"):
        remedy = "raise --batch_size or --global_batch_size, run fewer processes, or use --norm_eval true"
        return f"a forward pass of one clip leaves a batch norm (SDA's) one value for each channel; {remedy}"
    lost = "Connection closed by peer", "Connection reset by peer", "Socket closed", "Timed out waiting"
    if world_size() > 1 and (isinstance(error, dist.DistError) or any(words in text for words in lost)):
        return (
            f"rank {rank()} lost another rank of this run ({one_line(text)}); the message of that rank gives the reason"
        )
    return None


def _fail(message: str, code: int = 1) -> NoReturn:
    print(f"error: {one_line(message, 2000)}", file=sys.stderr, flush=True)
    _leave(code)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    kill_loading_processes()
    if dist.is_initialized():
        os._exit(code)
    sys.exit(code)
