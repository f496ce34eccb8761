"""The families of networks. To add one, write a line here or call ``register`` from other code."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .c3d import C3D_LAYOUT, c3d
from .gst import GST_LAYOUT, gst, gst_large
from .layout import Layout
from .rsanet import RSA_LAYOUT, rsanet
from .rubiksnet import RUBIKS_LAYOUT, rubiksnet
from .sda import SDA_LAYOUT, sda_tsm, sda_tsn
from .smallbig import SMALLBIG_LAYOUT, smallbig
from .stm import STM_LAYOUT, stm
from .tanet import TAM_LAYOUT, tanet
from .tea import TEA_LAYOUT, tea
from .teinet import teinet
from .tin import TIN_LAYOUT, tin
from .tpn import TPN_LAYOUT, tsm_tpn
from .tsn import TSM_LAYOUT, tsm, tsn
from .v4d import V4D_LAYOUT, v4d
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
        compiled: the sizes that ``torch.compile`` makes faster in training on a CPU, as measured. ``compile: auto``
            compiles them in long runs.
    """

    name: str
    build: Callable[..., VideoNetwork]
    layout: Layout | None = None
    sizes: tuple[str, ...] = ("r50", "tiny")
    toy: tuple[str, ...] = ("tiny",)
    recipes: Path | None = None
    compiled: tuple[str, ...] = ()


FAMILIES = [
    Family("tsn", tsn),
    Family("tsm", tsm, TSM_LAYOUT),
    Family("sda_tsn", sda_tsn, SDA_LAYOUT),
    Family("sda_tsm", sda_tsm, SDA_LAYOUT),
    Family("rsanet", rsanet, RSA_LAYOUT),
    Family("tanet", tanet, TAM_LAYOUT),
    Family("tea", tea, TEA_LAYOUT),
    Family("stm", stm, STM_LAYOUT),
    Family("teinet", teinet),
    Family("gst", gst, GST_LAYOUT),
    Family("gst_large", gst_large, GST_LAYOUT),
    Family("tin", tin, TIN_LAYOUT),
    Family("tsm_tpn", tsm_tpn, TPN_LAYOUT),
    Family("smallbig", smallbig, SMALLBIG_LAYOUT),
    Family("c3d", c3d, C3D_LAYOUT),
    Family("rubiksnet", rubiksnet, RUBIKS_LAYOUT, sizes=("tiny", "small", "medium", "large"), toy=()),
    Family("v4d", v4d, V4D_LAYOUT),
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
