"""The families of networks. To add one, write a line here or call ``register`` from other code."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .layout import Layout
from .rsanet import RSA_LAYOUT, rsanet
from .sda import SDA_LAYOUT, sda_tsm, sda_tsn
from .tsn import TSM_LAYOUT, tsm, tsn
from .video_network import VideoNetwork


@dataclass(frozen=True)
class Family:
    """A family: networks that differ only in size.

    Args:
        name: the first part of the models' names. The models of ``tsm`` are ``tsm_r50`` and ``tsm_tiny``.
        build: a function of ``(size, num_classes, num_segments, **options)`` that returns the network.
        layout: the layout of the weights that its authors released; ``None`` if they released none.
        sizes: the second parts of the models' names.
        toy: the sizes that are small networks for the toy set; nobody published them.
        recipes: the folder that holds ``<model>.yaml`` for each model; ``None`` means ``models/recipes``.
    """

    name: str
    build: Callable[..., VideoNetwork]
    layout: Layout | None = None
    sizes: tuple[str, ...] = ("r50", "tiny")
    toy: tuple[str, ...] = ("tiny",)
    recipes: Path | None = None


FAMILIES = [
    Family("tsn", tsn),
    Family("tsm", tsm, TSM_LAYOUT),
    Family("sda_tsn", sda_tsn, SDA_LAYOUT),
    Family("sda_tsm", sda_tsm, SDA_LAYOUT),
    Family("rsanet", rsanet, RSA_LAYOUT),
]


def register(family: Family) -> None:
    """Add a family. All programs and functions then know its models.

    Errors: ``ValueError`` if a model of this name exists.
    """
    taken = [name for name in names_of(family) if name in models()]
    if taken:
        raise ValueError(f"a model {taken[0]!r} exists; choose another name for the family")
    FAMILIES.append(family)


def models() -> dict[str, tuple[Family, str]]:
    """The name of each model -> its family and size. The full networks come first, then the toy networks."""
    found = {name: (family, size) for family in FAMILIES for name, size in names_of(family).items()}
    return dict(sorted(found.items(), key=lambda item: item[1][1] in item[1][0].toy))


def names_of(family: Family) -> dict[str, str]:
    """The names of a family's models -> their sizes."""
    return {f"{family.name}_{size}": size for size in family.sizes}


def layouts() -> list[Layout]:
    """The released layouts, each once."""
    return list(dict.fromkeys(family.layout for family in FAMILIES if family.layout))
