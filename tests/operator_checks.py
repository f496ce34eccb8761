"""Checks that all operators on frames pass: memory layouts, compilers, exporters, autocast. A start from ImageNet."""

from collections.abc import Callable

import torch
from golden_values import formula_tensor, relative_error
from torch import nn
from torchvision.models import resnet50

from models import VideoResNet, build_model, load_weights


def check_layouts(module: nn.Module, x: torch.Tensor) -> None:
    """channels_last gives the output and gradients of contiguous memory, and stays channels_last."""
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        frames = x.detach().clone(memory_format=memory_format).requires_grad_()
        y = module(frames)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
        gradients = torch.autograd.grad(y, [frames, *module.parameters()], weight.to(memory_format=memory_format))
        results.append((y, *gradients))
    for contiguous, channels_last in zip(*results, strict=True):
        assert relative_error(channels_last, contiguous.detach()) < 1e-5
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)
    assert results[1][1].is_contiguous(memory_format=torch.channels_last)


def check_programs(module: nn.Module, x: torch.Tensor) -> None:
    """The operator can be compiled as one graph and exported, and runs in bfloat16 under autocast."""
    expected = module(x)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x).float(), expected, rtol=0.1, atol=0.1)


def imagenet_start(name: str, **options) -> tuple[VideoResNet, VideoResNet, dict[str, torch.Tensor]]:
    """A network with its random weights, the same network after its ImageNet start, and the tensors of the file."""
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(build_model(name, 5, **options))
    file = resnet50().state_dict()
    report = load_weights(networks[1], file)
    assert report.layout == "imagenet" and not report.unexpected
    return *networks, {f"base_model.{key}": value for key, value in file.items()}


def check_resnet_start(model: VideoResNet) -> None:
    """A start from an ImageNet ResNet-50 takes every tensor of the file but the classifier, and leaves the others."""
    start = {key: value.clone() for key, value in model.state_dict().items()}
    names = resnet50().state_dict()
    file = {key: formula_tensor(key, value.shape).to(value.dtype) for key, value in names.items()}
    report = load_weights(model, file)
    assert report.layout == "imagenet" and len(report.loaded) == len(file) - 2
    for key, value in model.state_dict().items():
        stored = file.get(key.removeprefix("base_model."))
        assert torch.equal(value, start[key] if stored is None else stored), key


def check_plain_form(module: nn.Module, plain: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    """The outputs and all gradients of a float64 module are those of its plain form."""
    y, expected = module(x), plain(x)
    torch.testing.assert_close(y, expected)
    weights = [x, *module.parameters()]
    g = torch.randn_like(y)  # with one frame, some weights change nothing
    gradients = (torch.autograd.grad(out, weights, g, materialize_grads=True) for out in (y, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
