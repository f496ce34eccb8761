"""Loading processes that stay from epoch to epoch: the clips that they give, and what ends them between epochs."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from toy_run import make_dataset

from data import DataError, load_dataset_config
from engine import workers
from engine.batch import BatchPlan
from engine.config import load_recipe
from engine.interrupt import SIGNALS
from engine.loading import clips_on_device, training_data
from engine.workers import batches

LIMIT = 15  # seconds; PyTorch itself checks every 5 s whether a worker is gone
SETTINGS = {"num_segments": 4, "global_batch_size": 4, "seed": 5}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return load_dataset_config(str(make_dataset(tmp_path_factory.mktemp("small"), per_class=8)))


def training_loader(dataset, count: int):
    recipe = load_recipe("tsn_tiny", "small", **SETTINGS, workers=count)
    return training_data(dataset, recipe, BatchPlan(4), torch.device("cpu"))[0]


def one_pass(loader, epoch: int, first_step: int = 0) -> list[torch.Tensor]:
    """The clips, labels and places of an epoch, one after the other."""
    loader.batch_sampler.epoch, loader.batch_sampler.first_step = epoch, first_step
    return [torch.cat(parts) for parts in zip(*batches(loader), strict=True)]


def pids() -> set[int]:
    return {process.pid for process in multiprocessing.active_children()}


@pytest.fixture
def loader(small):
    """A loader with two processes after its first epoch. The test removes everything of it at the end."""
    loader = training_loader(small, 2)
    one_pass(loader, 0)
    assert len(pids()) == 2
    yield loader
    workers.kill_loading_processes()
    while pids():
        time.sleep(0.05)


def test_epochs_share_their_processes_and_have_the_clips_of_none(small, loader):
    before, plain = pids(), training_loader(small, 0)
    epochs = []
    for epoch, first_step in ((1, 0), (2, 2), (0, 0)):
        clips = one_pass(loader, epoch, first_step)
        for ours, expected in zip(clips, one_pass(plain, epoch, first_step), strict=True):
            assert torch.equal(ours, expected)
        assert len(clips[0]) == 16 - 4 * first_step and pids() == before
        epochs.append(clips)
    assert sorted(epochs[0][2].tolist()) == sorted(epochs[2][2].tolist()) == list(range(16))
    order = [clips[2].argsort() for clips in (epochs[0], epochs[2])]
    assert not torch.equal(epochs[0][0][order[0]], epochs[2][0][order[1]])  # the epoch reaches the processes


def test_a_pass_that_is_broken_off_leaves_nothing_to_the_next_one(small, loader):
    loader.batch_sampler.epoch = 1
    next(batches(loader))
    for ours, expected in zip(one_pass(loader, 2), one_pass(training_loader(small, 0), 2), strict=True):
        assert torch.equal(ours, expected)


def test_a_process_killed_between_two_epochs_is_one_line(loader):
    victim, begin = min(pids()), time.monotonic()
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(DataError, match=rf"^a loading process died \(pid {victim}, signal 9\); out of memory\?"):
        one_pass(loader, 1)
    assert time.monotonic() - begin < LIMIT


def test_a_process_stopped_between_two_epochs_is_killed_and_is_one_line(loader, monkeypatch):
    monkeypatch.setattr(workers, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(workers, "LONGEST_STOP", 1)
    victim, begin = min(pids()), time.monotonic()
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(DataError, match=rf"^a loading process stood still for 1 s \(pid {victim}; stopped by SIGSTOP"):
        one_pass(loader, 1)
    assert time.monotonic() - begin < LIMIT


def test_the_time_between_two_epochs_is_no_waiting(small, monkeypatch):
    monkeypatch.setattr(workers, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(workers, "LONGEST_WAIT", 2)
    loader = training_loader(small, 1)
    threads = threading.active_count()
    one_pass(loader, 0)
    before = pids()
    time.sleep(3)
    one_pass(loader, 1)
    assert pids() == before and threading.active_count() <= threads + 1  # PyTorch's own thread; no _Watch is running


def test_an_error_ends_the_processes(small, tmp_path):
    listed = Path(small.train_list).read_text()
    (tmp_path / "list.txt").write_text(listed.replace("video 5 ", "gone "))
    loader = training_loader(dataclasses.replace(small, train_list=str(tmp_path / "list.txt")), 2)
    with pytest.raises(DataError, match="list.txt:6: no folder"):
        one_pass(loader, 0)
    begin = time.monotonic()
    while pids():
        assert time.monotonic() - begin < LIMIT
        time.sleep(0.05)


def test_a_gpu_copies_the_next_batch_before_it_computes_with_the_present_one(monkeypatch):
    """The order of what is asked of the GPU, with stand-ins for its streams."""
    order = []

    class Clips(torch.Tensor):
        def to(self, device, non_blocking):
            assert device is gpu and non_blocking
            order.append(f"copy {len(self)} on {current[-1].name}")
            return self

        def record_stream(self, stream):
            order.append(f"{len(self)} is used by {stream.name}")

    class Stream:
        def __init__(self, device, name="copies"):
            self.name = name

        def record_event(self):
            return order[-1]

        def wait_event(self, event):
            order.append(f"{self.name} waits for: {event}")

    @contextmanager
    def use(stream):
        current.append(stream)
        yield
        current.pop()

    gpu, current = types.SimpleNamespace(type="cuda"), [Stream(None, "main")]
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    made = [(torch.zeros(size).as_subclass(Clips), size) for size in (1, 2, 3)]
    for clips, size in clips_on_device(iter(made), gpu):
        assert len(clips) == size
        order.append(f"compute {size}")
    copies = [f"copy {size} on copies" for size in (1, 2, 3)]
    steps = [[f"main waits for: {copies[i]}", f"{i + 1} is used by main", f"compute {i + 1}"] for i in range(3)]
    assert order == [*copies[:2], *steps[0], copies[2], *steps[1], *steps[2]]
    assert list(clips_on_device(iter([]), gpu)) == []
    assert list(clips_on_device(iter([((), 5)]), gpu)) == [((), 5)]


class BlockedSignals(torch.utils.data.Dataset):
    """Each item says which of the two signals are blocked in the process that makes it."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return torch.tensor([number in blocked for number in SIGNALS])


def test_a_process_that_has_just_started_is_not_ended_by_ctrl_c():
    """The processes of this loader never come to ignore signals, so only the inherited mask protects them."""
    (blocked,) = batches(torch.utils.data.DataLoader(BlockedSignals(), batch_size=2, num_workers=1))
    assert blocked.all()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)
