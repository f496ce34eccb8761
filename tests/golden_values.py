"""Weights and inputs that a formula gives, and the values that the released code computes from them (tests/golden)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent / "golden"


def table(name: str):
    """The content of a stored .npz or .json file."""
    path = FOLDER / name
    return json.loads(path.read_text()) if path.suffix == ".json" else np.load(path)


def formula_tensor(name: str, shape, seed: int = 0) -> torch.Tensor:
    """An input or gradient: standard normal numbers, seeded by the name."""
    rs = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    return torch.from_numpy(rs.standard_normal(tuple(shape)).astype(np.float32))


def formula_parameter(name: str, shape, seed: int = 0) -> torch.Tensor:
    """A parameter or buffer, by its released name and shape."""
    shape = tuple(shape)
    n = formula_tensor(name, shape, seed).double()
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(1)
    if leaf == "running_mean" or leaf == "bias":
        value = 0.1 * n
    elif leaf == "running_var":
        value = 1 + 0.1 * n.abs()
    elif leaf == "shift":  # of RubiksNet
        value = 1.2 * n
    elif leaf == "I":
        value = torch.eye(shape[-1], dtype=torch.float64) + 0.1 * n
    elif leaf == "P1":
        value = 0.05 * n
    elif leaf == "qVec":
        value = 0.1 * n
    elif len(shape) == 1:
        value = (0.3 if name.endswith("bn3.weight") else 1.0) + 0.1 * n
    else:
        value = n * (2 / max(1, int(np.prod(shape[1:])))) ** 0.5
    return value.float()


def compared_state(system: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with the released names and shapes of a compared system. Its values follow the formula."""
    shapes = table(f"compared/{system}_state_dict.json")
    return {key: formula_parameter(key, shape, seed) for key, shape in shapes.items()}


def fill_by_formula(module: nn.Module, prefix: str, seed: int = 0) -> None:
    """Fill ``module`` with formula weights for the names ``prefix.<name>``."""
    module.load_state_dict(
        {name: formula_parameter(f"{prefix}.{name}", value.shape, seed) for name, value in module.state_dict().items()}
    )


def released_state(name: str, seed: int = 0) -> dict:
    """A state dict like the released files: released names, 5-D shapes, ``module.`` prefix.

    Its values follow the formula.
    """
    shapes = table(f"{name}_state_dict.json")
    return {f"module.{key}": formula_parameter(key, shape, seed) for key, shape in shapes.items()}


def check_module(golden, stored: str, module: nn.Module, shape, released=lambda name: name, tolerances=None) -> None:
    """Compare a module with the released code: output, all gradients, and the BN statistics after a training pass.

    Args:
        golden: the table of stored values.
        stored: their tag, such as ``tam_c32_t8@train``. The part after ``@`` is the mode; eval if there is none.
        module: ours, on frames, ``(N*T, C, H, W) -> (N*T, C', H', W')``. Its weights are overwritten.
        shape: of the released input: ``(N*T, C, H, W)`` or ``(N, C, T, H, W)``.
        released: the released name for our name of a tensor in the module.
        tolerances: our name of a parameter -> tolerance of its gradient, if it is not 1e-4.
    """
    tag, _, mode = stored.partition("@")
    module.train(mode == "train")
    module.load_state_dict(
        {
            name: formula_parameter(f"{tag}.{released(name)}", value.shape).to(value.dtype)
            for name, value in module.state_dict().items()
        }
    )
    x = formula_tensor(f"{tag}.input", shape).requires_grad_()
    output = module(x if len(shape) == 4 else x.transpose(1, 2).flatten(0, 1))
    if len(shape) == 5:
        output = output.unflatten(0, (shape[0], -1)).transpose(1, 2)  # (N, C', T, H', W')
    (output * formula_tensor(f"{tag}.grad_output", output.shape)).sum().backward()

    assert relative_error(output, golden[f"{stored}/output"]) < 1e-5
    assert relative_error(x.grad, golden[f"{stored}/grad_input"]) < 1e-4
    parameters = {released(name): (name, parameter) for name, parameter in module.named_parameters()}
    assert parameters.keys() == {key.split("/grad/")[1] for key in golden.files if key.startswith(f"{stored}/grad/")}
    for released_name, (name, parameter) in parameters.items():
        expected = golden[f"{stored}/grad/{released_name}"]
        error = relative_error(parameter.grad.view(expected.shape), expected)
        assert error < (tolerances or {}).get(name, 1e-4), (name, error)
        parameter.grad = None
    for name, buffer in module.named_buffers():
        keys = [f"{stored}/{word}/{released(name)}" for word in ("after", "buffer")]
        for key in (key for key in keys if key in golden.files and not key.endswith("num_batches_tracked")):
            assert relative_error(buffer, golden[key]) < 1e-5, name


def relative_error(actual, expected) -> float:
    """The norm of the difference divided by the norm of ``expected``, in float64."""
    actual = actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    difference = np.linalg.norm(actual - expected)
    return float(difference / np.linalg.norm(expected)) if difference else 0.0  # both can be zeros
