"""The trained toy networks that pictures look into, and the validation videos that they see."""

from pathlib import Path

from data import EvalDataset, load_dataset_config, read_list
from data.sampling import AS_IT_IS
from engine.config import ConfigError
from engine.protocols import choose_views
from engine.testing import Member, load_network, make_test_set


def default_weights(model: str) -> Path:
    """The weights that ``scripts/make_figures.sh`` trains."""
    return Path(f"net_runs/figures_{model}/resnet_rgb_model_best.pth.tar")


def check_weights(file: Path, model: str) -> None:
    """Check that the weights are there. ``model`` is the network that the picture is meant for.

    Errors: ``ConfigError``, which names the command that trains them.
    """
    if not file.is_file():
        command = f"python main.py toy_something {model} --run figures_{model}"
        raise ConfigError(f"no weights {file}; train them with '{command}'")


def load_trained(file: Path, model: str, dataset: str) -> tuple[Member, EvalDataset]:
    """The ``model`` with its weights, and the validation videos of ``dataset`` as it sees them in a test.

    Errors: ``ConfigError``, ``WeightsError`` and ``DataError``.
    """
    check_weights(file, model)
    config = load_dataset_config(dataset)
    network, recipe, categories = load_network(str(file), None, None, config)
    member = Member(str(file), network, recipe, categories, choose_views(recipe, None), share=1.0)
    videos = read_list(config.val_list, config.num_classes)
    return member, make_test_set(member, videos, config.open_source(), AS_IT_IS)
