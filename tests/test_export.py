"""Exported networks, and networks by torch.hub, compute the same as eager mode, or an error says why not."""

import copy
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_run import ROOT

from engine.config import load_recipe, to_plain
from models import WeightsError, build_model, export, list_models, load_weights
from models.export import ExportError, export_onnx, export_program, export_safetensors
from models.weights import read_checkpoint, stored_classes

TINY = list_models(toy=True)


def trained_like(name: str, num_classes=5, num_segments=4, dtype=torch.float32, **options) -> torch.nn.Module:
    """A network in which every tensor matters. Otherwise RSANet's zero gammas would hide its operators."""
    torch.manual_seed(0)
    model = build_model(name, num_classes, num_segments, **options)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.dim() == 1:
                value.uniform_(0.5, 1.5) if key.endswith(("weight", "running_var")) else value.normal_(std=0.1)
        model.new_fc.weight.normal_()
    return model.to(dtype)


def clips(model, batch: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(batch, model.num_segments, model.in_channels, *size, generator=torch.Generator().manual_seed(7))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tsn_tiny", {"dtype": torch.bfloat16}),  # the export is float32
        ("tsm_tiny", {"in_channels": 10}),  # flow
        ("sda_tsn_tiny", {}),
        ("sda_tsm_tiny", {"num_segments": 16}),  # two halves of 8 frames
        ("rsanet_tiny", {}),
        ("rsanet_r50", {}),
    ],
)
def test_programs_compute_what_eager_does(tmp_path, monkeypatch, name, options):
    """The test uses other batch sizes and clips than the export's own check."""
    model, size = trained_like(name, **options), (32, 37)
    before, eager = copy.deepcopy(model.state_dict()), copy.deepcopy(model).float().eval()
    load, loaded = torch.export.load, []  # programs that the export itself reads back; reading takes seconds
    monkeypatch.setattr(torch.export, "load", lambda path: loaded.append(load(path)) or loaded[-1])
    assert export_program(model, tmp_path / "net.pt2", size) <= 1e-4
    assert model.training and os.listdir(tmp_path) == ["net.pt2"]
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])
    (program,) = loaded
    assert program.graph_signature.user_inputs == ("clips",) and program.example_inputs is None
    run = program.module()
    for batch in (1, 2, 5):
        with torch.no_grad():
            assert_close(run(clips(model, batch, size)), eager(clips(model, batch, size)))


@pytest.mark.parametrize("name", TINY)
def test_onnx_computes_what_eager_does(tmp_path, name):
    import onnx
    import onnxruntime

    model, size = trained_like(name).eval(), (32, 37 if name != "stm_tiny" else 64)  # STM takes no odd maps
    assert export_onnx(model, tmp_path / "net.onnx", size) <= 1e-4
    assert os.listdir(tmp_path) == ["net.onnx"]  # no second file with the weights
    onnx.checker.check_model(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {"clips": ["N", 4, 3, *size], "logits": ["N", 5]}
    for batch in (1, 2, 5):
        with torch.no_grad():
            expected = model(clips(model, batch, size))
        found = session.run(None, {"clips": clips(model, batch, size).numpy()})[0]
        assert_close(torch.from_numpy(found), expected)


def test_a_wrong_file_is_not_left(tmp_path, monkeypatch):
    model, file = trained_like("tsn_tiny"), tmp_path / "net.pt2"
    save = torch.export.save

    def wrong(by):
        def saved(program, path):
            bias = program.state_dict["new_fc.bias"]
            program.state_dict["new_fc.bias"] = torch.nn.Parameter(bias + by)
            save(program, path)

        return saved

    for by, message in (
        (0.01, "off by 0.00[0-9]+ of the network's largest, more than 0.0001"),
        (torch.nan, "by nan of"),
    ):
        monkeypatch.setattr(torch.export, "save", wrong(by))
        with pytest.raises(ExportError, match=message):
            export_program(model, file, 16)
        assert not os.listdir(tmp_path)
    file.write_text("an earlier file")
    monkeypatch.setattr(torch.export, "save", lambda program, path: path.write_text("no archive"))
    with pytest.raises(ExportError, match="net.pt2: cannot be written or read back"):
        export_program(model, file, 16)
    assert file.read_text() == "an earlier file" and os.listdir(tmp_path) == ["net.pt2"]


def test_both_batch_sizes_are_compared():
    """A file that is right only for one clip, or only for several clips, is refused."""
    model = trained_like("tsn_tiny").eval()
    assert export._largest_difference("net", model, model, 16) == 0
    for fails in (1, 3):
        with pytest.raises(ExportError, match=f"of {fails} clips are off by"):
            export._largest_difference("net", lambda x, n=fails: model(x) * (1.001 if len(x) == n else 1), model, 16)
    with pytest.raises(ExportError, match=r"gives logits \(1, 4\), the network \(1, 5\)"):
        export._largest_difference("net", lambda x: model(x)[:, 1:], model, 16)
    with torch.no_grad():
        model.new_fc.bias[0] = float("inf")
    with pytest.raises(ExportError, match="own logits are not finite"):
        export._largest_difference("net", model, model, 16)


def test_safetensors_roundtrip(tmp_path):
    from safetensors import safe_open

    model, file = trained_like("sda_tsm_tiny"), tmp_path / "net.safetensors"
    with torch.no_grad():
        model.new_fc.bias[0] = -0.0  # other bits, but an equal value
    conv = model.base_model.conv1.weight
    conv.data = conv.data.contiguous(memory_format=torch.channels_last)
    export_safetensors(model, file)
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
    assert len(metadata.pop("content_sha256")) == 64
    assert metadata == {"arch": "sda_tsm_tiny", "num_segments": "4", "num_classes": "5"}
    other = build_model("sda_tsm_tiny", 5, 4)
    report = load_weights(other, file)
    assert report.layout == "own" and not report.missing and not report.unexpected
    for (key, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, key
        assert a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes(), key
    with pytest.raises(WeightsError, match="the file holds sda_tsm_tiny, the model is sda_tsn_tiny"):
        load_weights(build_model("sda_tsn_tiny", 5, 4), file)
    checkpoint = read_checkpoint(file)  # test_models.py needs these entries
    assert checkpoint["config"] == {
        "model": "sda_tsm_tiny",
        "recipe": {"num_segments": 4},
        "dataset": {"num_classes": 5},
    }
    config = {"model": "sda_tsm_tiny", "recipe": {"num_segments": 4, "sda_lr_mult": 5}}
    export_safetensors(model, file, config)
    assert read_checkpoint(file)["config"] == config


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    model = trained_like("tsn_tiny")
    for value in (float("nan"), float("-inf")):
        with torch.no_grad():
            model.base_model.bn1.running_var[3] = model.new_fc.bias[0] = value
        with pytest.raises(
            ExportError, match="net.safetensors: base_model.bn1.running_var holds numbers that are not fin"
        ):
            export_safetensors(model, tmp_path / "net.safetensors")
    assert not os.listdir(tmp_path)


def test_a_damaged_export_is_refused(tmp_path):
    """A bit is flipped in a weight, in a name, or in the metadata."""
    from safetensors.torch import save

    model, file = trained_like("tsn_tiny"), tmp_path / "net.safetensors"
    export_safetensors(model, file)
    whole = file.read_bytes()
    for place in (len(whole) - 5, whole.index(b"bn1.bias"), whole.index(b'num_segments":"4') + 15):
        content = bytearray(whole)
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(
            WeightsError, match="net.safetensors: damaged, or changed after its export .*; copy or down"
        ):
            read_checkpoint(file)
    file.write_bytes(save(dict(model.state_dict()), {"arch": "tsn_tiny"}))  # other programs write no checksum
    assert load_weights(model, file).loaded


def test_safetensors_that_cannot_be_trusted(tmp_path, monkeypatch):
    model, file = build_model("tsn_tiny", 5, 4), tmp_path / "net.safetensors"
    file.write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.raises(WeightsError, match="net.safetensors: not a weight file that can be read safely"):
        load_weights(model, file)
    with pytest.raises(WeightsError, match="none.safetensors: no such weight file"):
        load_weights(model, tmp_path / "none.safetensors")
    read = export.read_checkpoint
    changes = {
        "new_fc.bias": lambda state: state["new_fc.bias"].add_(1),
        "base_model.conv1.weight": lambda state: state.pop("base_model.conv1.weight"),
        "stray": lambda state: state.update(stray=torch.zeros(1)),
    }
    for name, change in changes.items():

        def changed(path, change=change):
            checkpoint = read(path)
            change(checkpoint["state_dict"])
            return checkpoint

        monkeypatch.setattr(export, "read_checkpoint", changed)
        with pytest.raises(ExportError, match=f"1 tensors read back otherwise, first {name}"):
            export_safetensors(model, file)
    assert file.read_bytes().endswith(b"{broken}") and os.listdir(tmp_path) == ["net.safetensors"]


def test_without_the_optional_packages(tmp_path, monkeypatch):
    model, file = build_model("tsn_tiny", 5, 4), tmp_path / "net.safetensors"
    export_safetensors(model, file)
    for name in ("safetensors", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises an ImportError
    with pytest.raises(WeightsError, match=f"^{file}: to read it, pip install safetensors$"):
        load_weights(model, file)
    with pytest.raises(ExportError, match="needs safetensors .*pip install --upgrade safetensors$"):
        export_safetensors(model, tmp_path / "other.safetensors")
    with pytest.raises(ExportError, match="needs onnx, onnxscript, onnxruntime .*--upgrade onnxscript onnxruntime$"):
        export_onnx(model, tmp_path / "net.onnx", 16)
    export_program(model, tmp_path / "net.pt2", 16)
    assert sorted(os.listdir(tmp_path)) == ["net.pt2", "net.safetensors"]


def run_export(capsys, *words: object) -> tuple[int, str, str]:
    """Exit status, output and errors of ``python -m scripts.export``."""
    former, sys.argv = sys.argv, ["export", *map(str, words)]
    code = 0
    try:
        runpy.run_module("scripts.export", run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = former
    return code, *capsys.readouterr()


def own_checkpoint(model, file: Path, **recipe) -> Path:
    recipe = load_recipe(model.arch, "toy_something", num_segments=model.num_segments, **recipe)
    dataset = {"name": "toy_something", "num_classes": model.num_classes, "root": "/home/someone", "categories": None}
    config = {"model": model.arch, "recipe": to_plain(recipe), "dataset": dataset}
    torch.save({"state_dict": model.state_dict(), "arch": model.arch, "config": config}, file)
    return file


def test_command_on_our_own_checkpoint(tmp_path, capsys):
    """Model, frames, classes, modality and size come from the file, and .safetensors keeps all of them."""
    model = trained_like("tsm_tiny", 7, 3, in_channels=10, fold_div=4)
    flow = {"modality": "Flow", "input_size": 24, "model_options": {"fold_div": 4}}
    source, kept = own_checkpoint(model, tmp_path / "own.pth.tar", **flow), tmp_path / "kept.safetensors"
    code, output, errors = run_export(capsys, source, "--to", kept)
    assert code == 0 and not errors
    assert output.endswith("kept.safetensors: tsm_tiny, 134 tensors, bit-equal when read back\n")
    config = read_checkpoint(source)["config"]
    assert "root" in config["dataset"] and config["dataset"].pop("root")
    assert read_checkpoint(kept)["config"] == config
    code, output, errors = run_export(capsys, kept, "--to", tmp_path / "net.pt2")
    assert code == 0 and not errors
    line = output.splitlines()[-1]
    assert "net.pt2: tsm_tiny, clips (N, 3, 10, 24, 24) -> logits (N, 7) for any N; at N = 1 and 3 at most" in line
    run = torch.export.load(tmp_path / "net.pt2").module()
    with torch.no_grad():
        assert_close(run(clips(model, 2, (24, 24))), model.eval()(clips(model, 2, (24, 24))))


def test_command_on_a_released_file(tmp_path, capsys):
    model = build_model("tsm_r50", 6, 8)
    released = {f"module.{k}".replace(".conv1.", ".conv1.net."): v for k, v in model.state_dict().items()}
    released["module.base_model.conv1.weight"] = released.pop("module.base_model.conv1.net.weight")
    file, out = tmp_path / "released.pth", tmp_path / "net.safetensors"
    torch.save({"state_dict": released, "arch": "resnet50"}, file)
    code, _, errors = run_export(capsys, file, "--to", out)
    assert code == 1 and errors.endswith("does not say how many frames it was trained on; give --num_segments\n")
    code, output, errors = run_export(capsys, file, "--to", out, "--num_segments", 8)
    assert code == 0 and not errors and "TSM layout" in output
    checkpoint = read_checkpoint(out)
    assert checkpoint["arch"] == "tsm_r50" and stored_classes(checkpoint) == 6
    assert checkpoint["config"]["recipe"] == {"num_segments": 8}
    assert torch.equal(checkpoint["state_dict"]["new_fc.weight"], model.new_fc.weight)


def test_command_says_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
    model = build_model("tsn_tiny", 5, 4)
    bare, own, out = tmp_path / "bare.pth", own_checkpoint(model, tmp_path / "own.pth.tar"), tmp_path / "net.pt2"
    torch.save(model.state_dict(), bare)
    stem = {k.removeprefix("base_model."): v for k, v in model.state_dict().items() if "new_fc" not in k}
    torch.save(stem | {"fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}, tmp_path / "imagenet.pth")
    torch.save({"base_model." + k: v for k, v in stem.items()}, tmp_path / "headless.pth")
    tiny = ("--model", "tsn_tiny", "--num_segments", 4)
    cases = [
        ((own, "--to", "net.txt"), "net.txt: its ending tells the format; choose one of .pt2, .onnx, .safetensors"),
        ((own, "--to", own), "its ending tells the format"),
        ((tmp_path / "none.pth", "--to", out), "none.pth: no such weight file"),
        ((bare, "--to", out), "does not say which model it holds; name it with --model (tsn_r50, "),
        ((bare, "--to", out, "--model", "tsn_tini"), "unknown model 'tsn_tini'; did you mean tsn_tiny?"),
        ((bare, "--to", out, "--model", "tsn_tiny"), "give --num_segments"),
        ((own, "--to", out, "--num_segments", "four"), "--num_segments: num_segments is 'four', not a"),
        ((own, "--to", out, "--num_segments", 10**9), "num_segments is 1000000000; it must be at least 1 and at"),
        ((own, "--to", out, "--size", 0), "--size: input_size is 0; it must be at least 1"),
        ((own, "--to", out, "--size", 100000), "--size: input_size is 100000; it must be at least 1 and at most 4096"),
        ((own, "--to", out, "--model", "tsm_tiny"), "own.pth.tar: holds tsn_tiny, not tsm_tiny; leave --model out"),
        ((tmp_path / "headless.pth", "--to", out, *tiny), "holds no classifier of ours; train the network first"),
        ((tmp_path / "imagenet.pth", "--to", out, *tiny), "holds no classifier of ours; train the network first"),
        ((own, "--to", bare / "net.pt2"), "net.pt2: cannot be written"),
    ]
    for words, message in cases:
        code, _, errors = run_export(capsys, *words)
        assert code == 1 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors, errors
        assert not out.exists()
    kept = tmp_path / "kept.safetensors"
    export_safetensors(model, kept)
    code, _, errors = run_export(capsys, kept, "--to", kept)
    assert code == 1 and "is the file that is read; choose another name" in errors
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, errors = run_export(capsys, own, "--to", tmp_path / "net.onnx")
    assert code == 1 and errors.startswith("error: this format needs onnx, onnxscript, onnxruntime")
    assert errors.endswith("pip install --upgrade onnxruntime\n") and errors.count("\n") == 1
    code, _, errors = run_export(capsys, own, "--out", out)
    assert code == 2 and "--to" in errors


HUB = """
import sys
for name in ("yaml", "fvcore", "tensorboardX", "matplotlib", "onnx", "onnxruntime", "onnxscript", "safetensors"):
    sys.modules[name] = None  # what torch and torchvision can do without, so must the hub
import torch
root, weights, *names = sys.argv[1:]
for name in names:
    model = torch.hub.load(root, name, source="local", num_classes=5, num_segments=4)
    assert model.arch == name and model.eval()(torch.zeros(1, 4, 3, 32, 32)).shape == (1, 5)
model = torch.hub.load(root, "tsm_tiny", source="local", num_classes=5, num_segments=4, weights=weights)
state = torch.load(weights)
assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
print(model.in_channels, torch.hub.load(root, "tsm_tiny", 5, 4, source="local", in_channels=10).in_channels)
assert not {"data", "engine", "scripts"} & set(sys.modules)
assert root not in sys.path
sys.modules["models"] = type(sys)("models")  # of a program that has a folder of this name without __init__.py
try:
    torch.hub.load(root, "tsn_tiny", source="local", num_classes=5, num_segments=4)
except ImportError as error:
    print(error)
"""


def test_the_hub_has_every_model_and_nothing_else():
    """The hub lists callables whose names do not start with an underscore, and shows their docstrings."""
    hub = {key: value for key, value in runpy.run_path(ROOT / "hubconf.py").items() if not key.startswith("_")}
    assert hub.pop("dependencies") == ["torch", "torchvision"]
    assert list(hub) == list_models()
    assert all(entry.__name__ == name and entry.__doc__.startswith(f"{name}: clips") for name, entry in hub.items())


def test_torch_hub_from_another_folder(tmp_path):
    (tmp_path / "models.py").write_text("raise SystemExit('the models of another project')")
    torch.save(build_model("tsm_tiny", 5, 4).state_dict(), tmp_path / "tsm.pth")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", HUB, str(ROOT), "tsm.pth", *TINY]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    channels, error = done.stdout.splitlines()
    assert channels == "3 10"
    assert error.startswith("a package 'models' is imported already (a folder without __init__.py)")
