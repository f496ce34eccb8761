"""A checkpoint or weight file of any content is either used or refused with one line. No other error occurs."""

import io
import json
import pickle
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import DataError
from engine.checkpoint import check_for_resume
from engine.config import ConfigError, load_recipe, to_plain
from engine.network import build_from_checkpoint, build_from_recipe, run_settings
from engine.optim import parameter_groups
from engine.precision import Precision
from engine.state import TrainingState, average_weights
from models import WeightsError, load_weights
from models.export import export_safetensors
from models.weight_files import read_checkpoint, shown

# PyTorch warns about quantised and nested tensors.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ARCH, CLASSES = "tsn_tiny", ["up", "down", "left"]


@cache
def training_state() -> TrainingState:
    """The state after one step, with everything that a checkpoint may hold: momentum, loss scaler, averaged weights."""
    torch.manual_seed(0)
    recipe = load_recipe(ARCH, "toy_something", num_segments=2)
    model = build_from_recipe(ARCH, len(CLASSES), recipe)
    optimizer = torch.optim.SGD(parameter_groups(model), lr=0.01, momentum=0.9)
    state = TrainingState(model, optimizer, Precision("fp16", torch.device("cpu")), average_weights(model, 0.9))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return state


@cache
def valid_checkpoint() -> dict:
    """The checkpoint as it is read back from a file."""
    recipe = to_plain(load_recipe(ARCH, "toy_something", num_segments=2))
    dataset = {"name": "toy_something", "num_classes": len(CLASSES), "root": "frames", "categories": CLASSES}
    content = training_state().to_checkpoint({"model": ARCH, "recipe": recipe, "dataset": dataset})
    return torch.load(saved(content), weights_only=True)


def saved(content: object, **options) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, **options)
    file.seek(0)
    return file


def special(kind: str) -> object:
    """Values that hypothesis does not generate."""
    ring = {"a": 1}
    ring["state_dict"] = ring["ring"] = [ring]
    deep = []
    for _ in range(5000):
        deep = [deep]
    weight = torch.zeros(3, 256)
    return {
        "ring": ring,
        "deep": deep,
        "lines": "a\n" * 200_000,
        "huge": 10**5000,
        "sparse": weight.to_sparse(),
        "meta": weight.to("meta"),
        "quantised": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "enormous": torch.zeros(1).expand(10**10, 256),
        "surrogate": "\udc80",
        "pretrained": {"pretrained": "imagenet"},
        "state": valid_checkpoint()["optimizer"],
        "weights": valid_checkpoint()["state_dict"],
    }[kind]


KINDS = ["ring", "deep", "lines", "huge", "surrogate", "pretrained", "state", "weights"]
KINDS += ["sparse", "meta", "quantised", "nested", "enormous"]
DTYPES = (torch.float32, torch.float16, torch.float64, torch.complex64, torch.int64, torch.bool, torch.float8_e4m3fn)
TENSORS = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype), st.lists(st.integers(0, 3), max_size=6), st.sampled_from(DTYPES)
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20)
NUMBERS = st.sampled_from([-1, 0, 1, 10**23, 2**40, "4", "1e999"])
LEAVES = SCALARS | TENSORS | st.sampled_from(KINDS).map(special) | NUMBERS
KEYS = st.text(max_size=5) | st.integers() | st.binary(max_size=5) | st.none() | st.tuples(st.integers())
VALUES = LEAVES | st.recursive(LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4))


# The places where changes begin. Entries of small mappings are as likely as the many weights.
ROUTES = ["", "config", "config recipe", "config dataset", "optimizer", "optimizer state", "state_dict", "scaler"]


class Changed(dict):
    """A changed checkpoint. A failing test prints only the change, not all weights."""

    def __init__(self, content: dict, changes: list[str]):
        super().__init__(content)
        self.changes = changes

    def __repr__(self) -> str:
        return f"valid but {self.changes}"


def changed(draw, tree: object, route: list[str], changes: list[str], place: str = "") -> object:
    """A copy of ``tree`` with one entry below ``route`` replaced, removed or added."""
    if isinstance(tree, torch.Tensor) and draw(st.booleans()):
        like = draw(st.sampled_from([*DTYPES, "nan", "more", "flat"]))
        changes.append(f"{place} {like}")
        if isinstance(like, torch.dtype):
            return tree.to(like)
        return {"nan": tree * torch.nan, "more": torch.stack([tree, tree]), "flat": tree.flatten()}[like]
    if not isinstance(tree, (dict, list)) or not tree:
        value = draw(VALUES)
        changes.append(f"{place} = {shown(value)}")
        return value
    tree = tree.copy()
    if isinstance(tree, dict) and route and route[0] in tree:
        tree[route[0]] = changed(draw, tree[route[0]], route[1:], changes, f"{place}.{route[0]}")
        return tree
    key = draw(st.sampled_from(list(tree) if isinstance(tree, dict) else range(len(tree))))
    how = draw(st.sampled_from(["replace", "below", "remove", "add"]))
    if how == "add" and isinstance(tree, dict):
        key = draw(KEYS)
    value = draw(VALUES) if how in ("replace", "add") else None
    if how == "below":
        tree[key] = changed(draw, tree[key], [], changes, f"{place}.{shown(key)}")
        return tree
    changes.append(f"{place}.{shown(key)} {how} {shown(value)}")
    if how == "remove":
        del tree[key]
    elif how == "add" and isinstance(tree, list):
        tree.insert(key, value)
    else:
        tree[key] = value
    return tree


@st.composite
def checkpoints(draw) -> dict:
    content, changes = valid_checkpoint(), []
    for route in draw(st.lists(st.sampled_from(ROUTES), min_size=1, max_size=3)):
        content = changed(draw, content, route.split(), changes)
    return Changed(content, changes)


def refused(action, *args) -> bool:
    """Whether ``action`` raises an error that programs report in one line. Any other exception fails the test."""
    try:
        action(*args)
    except (ConfigError, WeightsError, DataError) as error:
        text = str(error)
        assert "file" in text and len(text.splitlines()) == 1 and len(text) < 2000, text[:3000]
        text.encode()
        return True
    return False


def use(content: dict) -> None:
    """Use a checkpoint as testing and exporting do."""
    model, recipe = build_from_checkpoint(content, "file", None, None, None)
    assert str(load_weights(model, content, name="file")).count("\n") == 2
    assert model.num_segments == recipe.num_segments
    settings = run_settings(content, "file")
    json.dumps({key: settings["dataset"].get(key) for key in ("name", "num_classes", "categories")})
    json.dumps([settings["model"], settings["recipe"]])


def resume(content: dict) -> None:
    state = training_state()
    check_for_resume(content, "file", ARCH)
    state.restore(content, "file")
    state.optimizer.step()
    assert "Prec@1" in str(state) and len(state.totals) == 4
    kept = [entry.get("momentum_buffer") for entry in state.optimizer.state.values()]
    assert all(momentum.isfinite().all() for momentum in kept if momentum is not None)


def test_a_valid_checkpoint_is_used():
    assert not refused(use, valid_checkpoint()) and not refused(resume, valid_checkpoint())


def with_entry(key: str, value: object) -> dict:
    """The valid checkpoint with ``value`` as its entry ``a.b.c``. If ``value`` is ``...``, the entry is removed."""
    content = place = dict(valid_checkpoint())
    *path, last = (int(part) if part.isdecimal() else part for part in key.split("."))
    for part in path:
        place[part] = place[part].copy()
        place = place[part]
    place[last] = value
    if value is ...:
        del place[last]
    return content


BAD_SETTINGS = [
    ("arch", 5, "arch is 5, must be a model's name"),
    ("config", ["tsn_tiny"], "config is ['tsn_tiny'], must be a mapping"),
    ("config.model", {"type": "TSN"}, "config.model is {'type': 'TSN'}, must be a model's name"),
    ("config.recipe", None, "config.recipe is None, must be a mapping"),
    ("config.recipe.lr", torch.ones(2, 3), "config.recipe.lr is a torch.float32 tensor (2, 3), must be a number"),
    ("config.recipe.source", "x" * 9999, "config.recipe.source is 'xxx"),
    ("config.recipe.model_options", {"pretrained": "imagenet"}, "must be a mapping of the network's options, not"),
    ("config.dataset.name", ["a"], "config.dataset.name is ['a'], must be a name"),
    ("config.dataset.categories", "up down", "config.dataset.categories is 'up down', must be a list of class names"),
    ("config.dataset.categories", ["up", 2, "left"], "must be a list of class names"),
]
BAD_TO_USE = [
    ("config.dataset.categories", ["up", "down"], "are 2 names, its classifier has 3 classes"),
    ("config.model", "tsm_r51", "unknown model in file 'tsm_r51'; did you mean tsm_r50?"),
    ("config.recipe.num_segments", 10**12, "file: num_segments is 1000000000000; it must be at least 1"),
    ("config.recipe.model_options", {"heads": 3}, "file: tsn_tiny cannot be built with"),
    ("state_dict", {"new_fc.weight": torch.zeros(1).expand(10**10, 256)}, "new_fc.weight is a repeated tensor"),
]
BAD_TO_RESUME = [
    ("epoch", "three", "epoch is 'three', must be a whole number of at least 0"),
    ("epoch", True, "epoch is True, must be"),
    ("step", -1, "step is -1, must be a whole number of at least 0"),
    ("optimizer", None, "optimizer is None, must be a mapping"),
    ("optimizer.state", ..., "holds no optimizer.state"),
    ("optimizer.param_groups", ..., "holds no optimizer.param_groups"),
    ("optimizer.param_groups.0", [1], "optimizer.param_groups.0 is [1], must be a mapping with a list params"),
    ("optimizer.state.0.exp_avg", torch.ones(1), "optimizer.state.0 is {'exp_avg': a torch.float32 tensor (1,), "),
    ("optimizer.state.3.momentum_buffer", torch.ones(2, 3), "optimizer.state.3.momentum_buffer is (2, 3) for ("),
    ("optimizer.state.1.momentum_buffer", "nan", "optimizer.state.1.momentum_buffer is not finite"),
    ("optimizer.state.1.momentum_buffer", "int", "optimizer.state.1.momentum_buffer is torch.int64 for torch.float32"),
    ("optimizer.state.1.momentum_buffer", "sparse", "optimizer.state.1.momentum_buffer is sparse"),
    ("optimizer.state.999", {}, "other parameters were trained there"),
    ("best_prec1", float("nan"), "best_prec1 is nan, must be a number from 0 to 100"),
    ("skipped", 2.5, "skipped is 2.5, must be a whole number of at least 0"),
    ("totals", [1.0, 2.0], "totals is [1.0, 2.0], must be a list of four finite numbers"),
    ("scaler", [1], "scaler is [1], must be empty, or a mapping with scale, growth_factor"),
    ("scaler.scale", ..., "must be empty, or a mapping with scale, growth_factor"),
    ("scaler.scale", 0, "scaler.scale is 0, must be a finite number above 0"),
    ("ema_updates", 10**23, "ema_updates is 100000000000000000000000, must be a whole number of at least 0"),
    ("train_state_dict", 1, "train_state_dict is 1, must be a mapping"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD_SETTINGS + BAD_TO_USE)
def test_a_bad_setting_is_named_before_testing(key, value, message):
    with pytest.raises((ConfigError, WeightsError)) as error:
        use(with_entry(key, value))
    assert str(error.value).startswith(("file: ", "unknown model in file")) and message in str(error.value)


@pytest.mark.parametrize(("key", "value", "message"), BAD_SETTINGS + BAD_TO_RESUME)
def test_a_bad_entry_is_named_before_training_goes_on(key, value, message):
    if key.endswith("momentum_buffer") and isinstance(value, str):
        momentum = valid_checkpoint()["optimizer"]["state"][1]["momentum_buffer"]
        value = {"nan": momentum * torch.nan, "int": momentum.long(), "sparse": momentum.to_sparse()}[value]
    with pytest.raises(ConfigError) as error:
        resume(with_entry(key, value))
    assert str(error.value).startswith("file: ") and message in str(error.value)


def test_an_old_checkpoint_without_the_newer_entries_goes_on():
    content = dict(valid_checkpoint())
    for key in ("step", "skipped", "totals", "scaler", "ema_updates", "train_state_dict"):
        del content[key]
    resume(content)
    state = training_state()
    assert (state.epoch, state.step, state.skipped, len(state.totals)) == (0, 0, 0, 4)


def test_settings_that_would_need_any_amount_of_memory_need_none():
    recipe = valid_checkpoint()["config"]["recipe"] | {"model_options": {"in_channels": 2 * 10**9}}
    with pytest.raises(WeightsError, match="conv1.weight .16, 3, 3, 3. for .16, 2000000000, 3, 3."):
        use(with_entry("config.recipe", recipe))


@given(checkpoints())
def test_any_checkpoint_is_used_or_refused(content):
    refused(use, content)
    refused(resume, content)


@cache
def valid_bytes(ending: str, folder) -> bytes:
    """A small weight file of each kind."""
    if ending == "safetensors":
        path = folder / "valid.safetensors"
        export_safetensors(training_state().model, path)
        return path.read_bytes()
    return saved({"epoch": 3, "state_dict": {"a": torch.arange(6.0), "b": torch.ones(2, 3)}, "names": CLASSES}).read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bytes")


def equal(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and a == b


def read(folder, ending: str, content: bytes) -> dict:
    file = folder / f"file.{ending}"
    file.write_bytes(content)
    return read_checkpoint(file)


@st.composite
def damages(draw) -> list:
    """The place, as a share of the file, and the damage: a changed byte, a cut, or inserted bytes."""
    places = st.floats(0, 1, exclude_max=True)
    damage = st.tuples(places, st.just("set"), st.binary(min_size=1, max_size=1))
    damage |= st.tuples(places, st.sampled_from(["cut", "insert", "remove"]), st.binary(min_size=1, max_size=20))
    return draw(st.lists(damage, min_size=1, max_size=3))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@given(damages())
def test_a_damaged_file_is_read_as_it_was_or_refused(folder, ending, changes):
    """Our files are fully protected: if a damaged file can be loaded, it has the saved content."""
    original = valid_bytes(ending, folder)
    content = bytearray(original)
    for place, how, value in changes:
        start = int(place * len(content))
        if how == "cut":
            del content[start:]
        elif how == "insert":
            content[start:start] = value
        else:
            content[start : start + len(value)] = value if how == "set" else b""

    def same() -> None:
        assert equal(read(folder, ending, bytes(content)), read(folder, ending, original))

    refused(same)


LEGACY = b"".join(
    pickle.dumps(part, protocol=2)
    for part in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True})
)
# Instructions of the unpickler, and the objects that they use.
WORDS = [bytes([i]) for i in b"(})]NRbsuaet2Q.\x81\x85\x86\x87\x88\x89"]
WORDS += [b"\x80\x02", b"K\x05", b"M\x00\x01", b"q\x00", b"h\x00", b"X\x05\0\0\0state", b"G@\x00\0\0\0\0\0\0"]
WORDS += [f"c{place}\n".encode() for place in ("torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter")]
WORDS += [f"c{place}\n".encode() for place in ("collections\nOrderedDict", "torch\nFloatStorage", "torch\nSize")]
WORDS += [f"c{place}\n".encode() for place in ("builtins\nprint", "os\nsystem", "torch\nfloat32", "x" * 5000 + "\ny")]
STARTS = st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", LEGACY, b"\x10\0\0\0\0\0\0\0{"])


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@given(STARTS, st.binary(max_size=200) | st.lists(st.sampled_from(WORDS), max_size=20).map(b"".join))
def test_any_bytes_are_read_or_refused(folder, ending, start, rest):
    refused(read, folder, ending, start + rest)
