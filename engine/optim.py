"""Parameter groups, SGD and its learning rates, as the released code of the two papers has them."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from models.resnet import VideoResNet
from ops import SDA
from ops.sda import QueryAggregation

from .config import ConfigError, Recipe
from .log import info


def parameter_groups(
    model: VideoResNet,
    fc_lr_mult: float = 1.0,
    fc_bias_lr_mult: float = 2.0,
    sda_lr_mult: float = 5.0,
    flow: bool = False,
) -> list[dict]:
    """Groups for ``torch.optim.SGD`` with ``name lr_mult decay_mult param_names`` beside ``params``.

    Weight decay falls on weights (P1 and I of RSA among them), not on biases, BN or SDA's query. The weights of SDA,
    not its BN, learn ``sda_lr_mult`` times faster; the classifier has multipliers of its own (RSA 1 and 2, SDA 1 and
    2, TSM 5 and 10), and TSM's first convolution on ``flow`` (5 and 10). Frozen parameters are in no group.
    """
    rules = {
        "conv1_weight": (5.0 if flow else 1.0, 1.0),
        "conv1_bias": (10.0 if flow else 2.0, 0.0),
        "weight": (1.0, 1.0),
        "bias": (2.0, 0.0),
        "bn": (1.0, 0.0),
        "fc_weight": (fc_lr_mult, 1.0),
        "fc_bias": (fc_bias_lr_mult, 0.0),
        "sda_weight": (sda_lr_mult, 1.0),
        "sda_query": (1.0, 0.0),
    }
    groups = {
        name: {"name": name, "lr_mult": lr_mult, "decay_mult": decay_mult, "params": [], "param_names": []}
        for name, (lr_mult, decay_mult) in rules.items()
    }
    sda = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, SDA))
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, _BatchNorm):
                kind = "bn"
            elif isinstance(module, QueryAggregation):
                kind = "sda_query"
            elif module is model.new_fc:
                kind = f"fc_{leaf}"
            elif flow and module is model.base_model.conv1:
                kind = f"conv1_{leaf}"
            elif module_name.startswith(sda):
                kind = "sda_weight"
            else:
                kind = "bias" if leaf == "bias" else "weight"
            groups[kind]["params"].append(parameter)
            groups[kind]["param_names"].append(f"{module_name}.{leaf}")
    return [group for group in groups.values() if group["params"]]


def build_optimizer(model: VideoResNet, recipe: Recipe) -> torch.optim.SGD:
    """The recipe's optimiser; its groups go to the log. Errors: ``ConfigError`` if everything is frozen."""
    groups = parameter_groups(
        model, recipe.fc_lr_mult, recipe.fc_bias_lr_mult, recipe.sda_lr_mult, flow=recipe.modality == "Flow"
    )
    for group in groups:
        lr_mult = group["lr_mult"] if recipe.lr_multipliers else "1 (lr_multipliers is off)"
        shown = f"lr_mult: {lr_mult}, decay_mult: {group['decay_mult']}"
        info(f"group: {group['name']} has {len(group['params'])} params, {shown}")
    if not groups:
        raise ConfigError("nothing is left to train; lower frozen_stages")
    return build_sgd(groups, recipe.lr, recipe.momentum, recipe.nesterov, recipe.weight_decay)


def build_sgd(groups: list[dict], lr: float, momentum: float, nesterov: bool, weight_decay: float) -> torch.optim.SGD:
    """SGD whose groups decay by ``weight_decay * decay_mult``."""
    groups = [group | {"weight_decay": weight_decay * group["decay_mult"]} for group in groups]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, use_multipliers: bool) -> None:
    """Give every group ``lr``, times its ``lr_mult`` if ``use_multipliers``.

    The released RSA code sets the multipliers and then lets its cosine schedule overwrite them, so its runs had one
    learning rate for all groups.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * (group["lr_mult"] if use_multipliers else 1.0)
