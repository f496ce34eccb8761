"""One process or many (torchrun): the same calls work for both."""

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

from data.messages import one_line

from .config import ConfigError
from .interrupt import EXIT_CODE, Stopped
from .memory import keep_freed_memory
from .workers import kill_loading_processes


def init(device: str | None) -> torch.device:
    """Join the process group that torchrun announces, if any, and choose and set up this process's device.

    ``device``: ``"cpu"``, ``"cuda"`` or ``None`` for a GPU where there is one.
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
        # gloo beside NCCL: what the host alone needs to know (sums of losses, a stop) does not pass through the GPU.
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
    """The others enter when the first process has left: it alone writes what all then read. Not to be nested.

    If it fails, it alone says why; the others exit.
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


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over processes, on all of them."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def share_buffers(model: torch.nn.Module) -> None:
    """Give every process the first one's BN statistics, which its checkpoint holds.

    DistributedDataParallel does so before each training step, but what a step adds is each process's own.
    """
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def gather_objects(value: object) -> list:
    """One value a process, in rank order, on all of them."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def fail_together(error: Exception) -> NoReturn:
    """Raise what every process has found out; the first one alone says it."""
    if not is_main():
        with suppress(RuntimeError):  # the first one leaves and never joins
            all_sum(torch.zeros(1))
        os._exit(1)
    raise error


def run_program(main: Callable[[], None], errors: tuple[type[Exception], ...]) -> None:
    """Run ``main`` and end the process: nothing that is left over, a loading process or another rank, is waited for.

    Exit status: 0; 1 after an error, which is one line if it is expected (``errors``, memory that does not suffice,
    another rank that is gone) and a traceback if it is a bug; ``interrupt.EXIT_CODE`` if the run was asked to stop and
    saved; 130 after Ctrl-C. A failed rank does not wait for the others: torchrun ends them.
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
    """What the user can do about an error that PyTorch raises, or ``None`` for a bug of ours."""
    text = str(error)
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
        return f"rank {rank()} lost another rank of this run ({one_line(text)}); what that one says is the reason"
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
