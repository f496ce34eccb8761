"""A forward pass of every network on a fake GPU. PyTorch's fake tensors have only a device, a type and a shape.

These tests find a tensor left on the CPU, types that do not fit, and operators without a rule for shapes. They do not
test numbers, and a backward pass of fake tensors needs a real device. ``scripts/check_gpu.sh`` checks both on a real
GPU.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.precision import AUTOCAST
from models import build_model, list_models
from models.video_network import WithAuxiliary

K, T, SIZE = 5, 8, 64
PRECISIONS = ["fp32", "bf16"]


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch):
    """A fake device with bf16. Without a GPU, autocast would otherwise warn and switch itself off."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    with FakeTensorMode():
        yield


def build(name: str) -> nn.Module:
    """Build a network on the fake GPU. Fake mode does not allow ``model.to("cuda")``."""
    with torch.device("cuda"):
        return build_model(name, K, T)


def check_forward(model: nn.Module, precision: str) -> None:
    """Check shape, device and type of the logits of two clips, computed with ``engine.precision``."""
    dtype = AUTOCAST.get(precision)
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype is not None):
        output = model(torch.empty(2, T, 3, SIZE, SIZE, device="cuda"))
    for logits in output if isinstance(output, WithAuxiliary) else [output]:
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
