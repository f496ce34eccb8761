"""Parameter groups, SGD and its learning rates, as in the released code of the two papers."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from models.video_network import VideoNetwork

from .config import ConfigError, Recipe, check_key
from .log import info

LAYERS = (_ConvNd, nn.Linear)  # layers whose parameters are a weight and a bias
NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
FIRST = ("conv1_weight", "conv1_bias", "weight", "bias", "bn", "fc_weight", "fc_bias")  # groups, in this order


def parameter_groups(
    model: VideoNetwork, lr_mults: Mapping[str, float] | None = None, flow: bool = False, decay_all: bool = False
) -> list[dict]:
    """Groups for ``torch.optim.SGD``. Each has ``params`` and ``name lr_mult decay_mult param_names``.

    A group holds the parameters of one kind, such as weights or biases, of one part of the network. The parts are the
    backbone, the classifier (``fc``), the first convolution (``conv1``, only for ``flow``), and each part that a class
    declares (``optim_group = "sda"``); modules inside such a module belong to its part. All norms are one group,
    ``bn``. With ``optim_params = {"P1": "weight"}``, a class declares the kind of its parameters outside standard
    layers. Only weights decay, unless ``decay_all``. Frozen parameters are in no group.

    Args:
        lr_mults: factors of the learning rate for ``fc``, ``fc_bias``, ``sda``, ... By default, the factor is 1, or 5
            for flow's first convolution (TSM). The default for biases is twice the factor of the weights (TSN).

    A factor of a group that this network lacks changes nothing, and the log says so.

    Errors: ``ConfigError`` if no class declares a parameter, or if a factor names a group that no class declares.
    """
    given = dict(lr_mults or {})
    lr_mults = ({"conv1": 5.0} if flow else {}) | given
    modules = dict(model.named_modules())
    declared = {name: module.optim_group for name, module in modules.items() if hasattr(module, "optim_group")}
    declared |= {"new_fc": "fc"} | ({"base_model.conv1": "conv1"} if flow else {})
    members: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in FIRST}
    for module_name, module in modules.items():
        group = next((declared[name] for name in _with_parents(module_name) if name in declared), "")
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                role = _role(module, module_name, leaf)
                name = role if role == "bn" or not group else f"{group}_{role}"
                members.setdefault(name, []).append((f"{module_name}.{leaf}", parameter))
    _check_factors(given, [name.removesuffix("_weight") for name, found in members.items() if found])
    return [
        {
            "name": name,
            "lr_mult": _factor(name, lr_mults),
            "decay_mult": float(decay_all or name.endswith("weight")),
            "params": [parameter for _, parameter in found],
            "param_names": [parameter_name for parameter_name, _ in found],
        }
        for name, found in members.items()
        if found
    ]


def _check_factors(lr_mults: Mapping[str, float], present: list[str]) -> None:
    """Log the factors that change nothing, because the network lacks the group or does not train it.

    Errors: ``ConfigError`` if no class declares the group.
    """
    declared = {module.optim_group for module in _subclasses(nn.Module) if hasattr(module, "optim_group")}
    for key, factor in lr_mults.items():
        if key not in present and factor != 1:
            if not any(key == group or key.startswith(f"{group}_") for group in declared):
                check_key(key, [name.removesuffix("_weight") for name in FIRST] + sorted(declared), "group in lr_mults")
            info(f"lr_mults: no parameter that is trained belongs to the group {key}, so its factor changes nothing")


def _subclasses(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from _subclasses(child)


def _with_parents(name: str) -> list[str]:
    """``"a.b"`` -> ``["a.b", "a", ""]``."""
    parts = name.split(".") if name else []
    return [".".join(parts[:length]) for length in range(len(parts), -1, -1)]


def _role(module: nn.Module, module_name: str, leaf: str) -> str:
    declared = getattr(module, "optim_params", {})
    if leaf in declared:
        return declared[leaf]
    if isinstance(module, NORMS):
        return "bn"
    if isinstance(module, LAYERS) and leaf in ("weight", "bias"):
        return leaf
    raise ConfigError(
        f"{module_name}.{leaf}: {type(module).__name__} does not declare this parameter for the optimiser; add "
        f'optim_params = {{"{leaf}": "weight"}} to the class, or another word than weight to train it without decay'
    )


def _factor(group: str, lr_mults: Mapping[str, float]) -> float:
    key = group.removesuffix("_weight")
    if key in lr_mults:
        return float(lr_mults[key])
    weight = "weight" if group == "bias" else group.removesuffix("_bias")
    return 2.0 * _factor(weight, lr_mults) if group.endswith("bias") else 1.0


def build_optimizer(model: VideoNetwork, recipe: Recipe) -> torch.optim.SGD:
    """The recipe's optimiser. Its groups are logged.

    Errors: the errors of ``parameter_groups``, and ``ConfigError`` if everything is frozen.
    """
    groups = parameter_groups(model, recipe.lr_mults, recipe.modality == "Flow", recipe.decay_all)
    for group in groups:
        lr_mult = group["lr_mult"] if recipe.lr_multipliers else "1 (lr_multipliers is off)"
        shown = f"lr_mult: {lr_mult}, decay_mult: {group['decay_mult']}"
        info(f"group: {group['name']} has {len(group['params'])} params, {shown}")
    if not groups:
        raise ConfigError("nothing is left to train; lower frozen_stages")
    return build_sgd(groups, recipe.lr, recipe.momentum, recipe.nesterov, recipe.weight_decay)


def build_sgd(groups: list[dict], lr: float, momentum: float, nesterov: bool, weight_decay: float) -> torch.optim.SGD:
    """SGD. The weight decay of a group is ``weight_decay * decay_mult``."""
    groups = [group | {"weight_decay": weight_decay * group["decay_mult"]} for group in groups]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, use_multipliers: bool) -> None:
    """Set every group's learning rate to ``lr``, multiplied by its ``lr_mult`` if ``use_multipliers``.

    The released RSA code sets the multipliers, but its cosine schedule then overwrites them. Its runs therefore had one
    learning rate for all groups.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * (group["lr_mult"] if use_multipliers else 1.0)
