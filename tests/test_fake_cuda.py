"""A forward pass of every network on a GPU that is not there: PyTorch's fake tensors know device, type and shape alone.

This finds a tensor left on the CPU, types that do not fit, and operators that have no rule for shapes. It says nothing
about numbers, and a backward pass of fake tensors needs a device: ``scripts/check_gpu.sh`` checks both on a real GPU.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.precision import AUTOCAST
from models import build_model, list_models

K, T, SIZE = 5, 8, 64
PRECISIONS = ["fp32", "bf16"]


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch):
    """A fake device that has bf16: without a GPU, autocast would otherwise switch itself off with a warning."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    with FakeTensorMode():
        yield


def build(name: str) -> nn.Module:
    """On the fake GPU; ``model.to("cuda")`` is refused in a fake mode."""
    with torch.device("cuda"):
        return build_model(name, K, T)


def check_forward(model: nn.Module, precision: str) -> None:
    """Shape, device and type of the logits of two clips, computed as ``engine.precision`` has them computed."""
    dtype = AUTOCAST.get(precision)
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype is not None):
        logits = model(torch.empty(2, T, 3, SIZE, SIZE, device="cuda"))
    assert logits.shape == (2, K) and logits.device.type == "cuda" and logits.dtype == (dtype or torch.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list_models())
def test_networks_run_on_a_fake_gpu(name, precision):
    model = build(name)
    for training in (True, False):
        check_forward(model.train(training), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_rsa_paths_run_on_a_fake_gpu(backend, precision):
    model = build("rsanet_tiny")
    model.set_backend(backend)
    check_forward(model, precision)


class Broken(nn.Module):
    """A network with a faulty last operation."""

    def __init__(self, last):
        super().__init__()
        self.network, self.last = build("tsn_tiny"), last

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.last(self.network(clips))


def test_a_tensor_left_on_the_cpu_is_found():
    check_forward(Broken(lambda logits: logits + torch.ones(K, device="cuda")), "fp32")
    with pytest.raises(RuntimeError, match="cpu"):
        check_forward(Broken(lambda logits: logits + torch.ones(K)), "fp32")


@pytest.mark.parametrize("last", [torch.Tensor.cpu, torch.Tensor.double, lambda logits: logits[:1]])
def test_a_result_of_another_device_type_or_shape_is_found(last):
    with pytest.raises(AssertionError):
        check_forward(Broken(last), "bf16")
