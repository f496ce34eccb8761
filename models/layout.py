"""The layout of released weights: how to recognise a state dict, and how to rename its keys to ours."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

State = dict[str, Tensor]  # name of a tensor, without the prefix "module." -> the tensor


def same_name(key: str) -> str:
    """The rule of a layout that renames nothing."""
    return key


def same_tensor(key: str, value: Tensor) -> Tensor:
    """The rule of a layout that stores tensors as we do."""
    return value


@dataclass(frozen=True)
class Layout:
    """The layout of the weights that a family's authors released.

    ``load_weights`` removes the prefix ``module.``, knows both names of the classifier (``new_fc``, ``base_model.fc``)
    and squeezes 1xkxk kernels in every layout. A ``Layout`` holds the rules that a layout needs in addition.

    Args:
        name: what reports call the layout.
        mark: whether a state dict has this layout.
        rename: our name for a key, or ``None`` if the entry is not a weight.
        convert: our form of a tensor, from our name and the stored tensor. Squeezing needs no rule.
        model: the name of the model of a state dict, or ``None`` if unknown. It is called for every state dict.
        num_segments: the number of frames that a file's name contains, or ``None``.
        module: a class of module that the network of such a file contains although it has no tensors.
    """

    name: str
    mark: Callable[[State], bool]
    rename: Callable[[str], str | None] = same_name
    convert: Callable[[str, Tensor], Tensor] = same_tensor
    model: Callable[[State], str | None] = lambda state: None
    num_segments: Callable[[str], int | None] = lambda file_name: None
    module: type[nn.Module] | None = None
