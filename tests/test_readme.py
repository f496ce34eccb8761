"""Every command in README and docs runs on toy data. If you add a command there, add its toy form here."""

import os
import re
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import quick_python
import torch
import yaml
from checkout import copy_repository, run_script, shorten
from toy_run import ROOT, make_dataset, quick_flags, run

from engine.config import KEYS
from models import build_model

PAGES = [(ROOT / "README.md").read_text(), *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page, re.S)]


def commands() -> list[str]:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    lines = [re.sub(r"\s+", " ", line.split(" #")[0]).strip() for line in text.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A checkout with its own data. The 'something' sets have 174 classes, but videos of only two."""
    folder = tmp_path_factory.mktemp("checkout")
    copy_repository(folder)
    dataset = make_dataset(folder / "mine", per_class=2)
    for name, template in (("something_v1", "{:05d}.jpg"), ("something_v2", "{:06d}.jpg")):
        target = folder / "data" / name
        shutil.copytree(dataset.parent / "frames", target / "frames")
        for split in ("train", "val"):
            shutil.copy(dataset.parent / f"{split}.txt", target / f"{split}_videofolder.txt")
        for frame in list(target.rglob("*.jpg")):
            frame.rename(frame.with_name(template.format(int(frame.stem))))
    config = yaml.safe_load(dataset.read_text())
    config |= {key: f"mine/{config[key]}" for key in ("root", "train_list", "val_list")}
    (folder / "my_set.yaml").write_text(yaml.safe_dump(config))
    flow = folder / "mine" / "flow"
    for frame in (folder / "mine" / "frames").rglob("*.jpg"):
        target = flow / frame.parent.relative_to(folder / "mine" / "frames")
        target.mkdir(parents=True, exist_ok=True)
        for axis in "xy":
            shutil.copy(frame, target / f"flow_{axis}_{frame.name}")
    config |= {"root": "mine/flow", "image_tmpl": "flow_{}_{:05d}.jpg"}
    (folder / "my_flow.yaml").write_text(yaml.safe_dump(config))
    write_slurm_stubs(folder / "bin")
    write_clip(folder / "my_clip.mp4")
    for name in ("jump/1", "jump/2", "run/1", "run/2"):
        write_clip(folder / "my_videos" / f"{name}.mp4")
    rng = np.random.default_rng(0)
    for part, classes in (("verb", 125), ("noun", 352)):
        scores, labels = rng.standard_normal((6, classes), np.float32), rng.integers(0, classes, 6)
        np.savez(folder / f"{part}.npz", scores=scores, labels=labels, paths=np.array([f"P01/{i}" for i in range(6)]))
    for name, model in (
        ("sda_tsm.pth.tar", "sda_tsm_r50"),
        ("resnet_rgb_model_best.pth.tar", "rsanet_r50"),
        ("tiny.pth.tar", "rsanet_tiny"),
    ):
        (folder / "net_runs" / "released").mkdir(parents=True, exist_ok=True)
        state = {f"module.{key}": value for key, value in build_model(model, 174, 8).state_dict().items()}
        torch.save({"state_dict": state}, folder / "net_runs" / "released" / name)
    return folder


def write_clip(file: Path) -> None:
    """One second of grey noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width = stream.height = 64
        for noise in np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())


def write_slurm_stubs(folder: Path) -> None:
    """Stand-ins for the three Slurm commands that a job needs. srun starts the processes of all nodes here."""
    nodes = 'export SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES="$2" SLURM_JOB_NODELIST=localhost SLURM_SUBMIT_DIR="$PWD"'
    stubs = {
        "sbatch": f'[ "$1" = --nodes ] || exit 9\n{nodes}\nshift 2\nexec bash "$@"\n',
        "srun": 'for _ in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & done\nwait -n && wait -n\n',
        "scontrol": 'if [ "$1" = requeue ]; then echo "requeued $2" >>requeued; else echo localhost; fi\n',
    }
    folder.mkdir()
    for name, text in stubs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / name).chmod(0o755)


# With these flags after the published ones, training takes seconds.
SHORT = " ".join(quick_flags(epochs=1)) + " --pretrained none"
SMALL = f"{SHORT} --num_segments 8 --train_resize none --val_resize 48 --val_crop 48 --input_size 48"
FEW = "--device cpu --workers 0 --input 48"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# quickstart.sh has its own test below, test_figures.py runs make_figures.sh, and run_tests.sh runs this test.
ELSEWHERE = ("./scripts/quickstart.sh", "./scripts/make_figures.sh", "./scripts/run_tests.sh")
PUBLISHED = [command for command in dict.fromkeys(commands()) if command not in ELSEWHERE]
# The run, score file or dataset that a command makes. A prepared folder of videos gets the ending "_prepared".
MADE = re.compile(r"(?:--run|--scores|train_Something_v\d\.sh) (\S+)|prepare folder (\S+)")


def made_by(command: str) -> set[str]:
    return {name or f"{folder}_prepared" for name, folder in MADE.findall(command)}


def toy_form(command: str) -> str:
    """The command as the test runs it."""
    if command.startswith("./scripts/train_nodes.sh 2 node1:29500 "):  # both nodes run on this machine
        here = command.replace("node1:29500", f"localhost:{free_port()}")
        return f"{here} {SMALL} & first=$!; {here} {SMALL} && wait $first"
    if command == "python -m benchmarks.training":
        return f"{command} tsn_tiny --size 32 --steps 1 --only channels_last"
    if command == "python -m benchmarks.input":
        return f"{command} --videos 2 --rounds 1"
    if command == "python -m benchmarks.memory":
        return f"{command} --videos 400 --workers 2 --epochs 1 --samples 2"
    if command == "python -m benchmarks.rsa":
        return f"{command} --clips 1 --num_segments 2 --rounds 1 --stages res5"
    if command == "python -m benchmarks.network":
        return f"{command} rsanet_tiny --size 32 --rounds 1"
    if command == "python -m benchmarks.loader":
        return f"{command} tsn_tiny --size 32 --num_segments 2 --steps 2 --videos 2 --workers 1 --pixels fast"
    if command == "python -m benchmarks.released":
        return f"{command} --size 0.0625 --rounds 1"
    if command.startswith("python -m benchmarks.scaling"):
        return f"{command} --rounds 1 --gpus 8"
    if command == "python -m benchmarks.video":
        return f"{command} --files ssv2 --frames 4 --rounds 1"
    if command == "python -m tests.kill_and_resume --kills 50":
        return f"{sys.executable} -m tests.kill_and_resume --kills 1"  # it must see the processes that it kills
    if command == "python -m tests.chaos --minutes 10":
        return f"{sys.executable} -m tests.chaos --minutes 0 --processes 1"
    if command == "python -m models.costs":  # two tests named test_costs compare the networks
        return f"{command} tsn_tiny --num_segments 4 --size 64"
    if command.startswith("python -m models.costs "):
        return f"{command} --num_segments 4 --size 64"
    if command == "./scripts/check_gpu.sh":  # its steps have a test of their own
        return f"! {command} 2>error && grep 'no GPU' error"
    if match := re.match(r"python -m scripts.prepare (\w+) downloads/(\w+)", command):  # small official files
        name, files = match[1], f"downloads/{match[2]}"
        made = f"rm -rf {files}; python -m tests.official_files {name} {files}"
        return f"{made} && {command} --workers 0 --to prepared/{PUBLISHED.index(command)}"
    if command.startswith("python -m scripts.export "):
        return f"{command} --size 48"
    if command.startswith("python main.py my_videos_prepared/"):  # it has two training videos
        return f"{command} {SMALL} --global_batch_size 2"
    if command.startswith("python -m scripts.visualize_kernels "):  # the weights of a random network
        weights = "net_runs/quickstart_rsanet_tiny/resnet_rgb_model_best.pth.tar"
        clip = "data/toy_something/frames/val/"
        command = command.replace(f"{clip}00000", f"'{clip}video 0'")
        return command.replace(weights, "net_runs/released/tiny.pth.tar --model rsanet_tiny --num_segments 8")
    if command.startswith(("./scripts/train_", "python main.py", "MODEL=", "RSA_BACKEND=", "torchrun", "sbatch ")):
        return f"{command} {SMALL}"
    if command.startswith(("./scripts/test_", "./scripts/ensemble.sh", "python test_models.py")):
        return f"{command} {FEW}"
    if command.startswith(("python -m scripts.", "python -m figs.")):
        return command
    raise AssertionError(f"README or docs publish a command without a toy form: {command}")


def needed_by(command: str) -> list[str]:
    """The commands, on any page, whose run or score file this command names. A run's own command needs no other."""
    words = set(re.split(r"[\s/,]", command)) - made_by(command)
    return [other for other in PUBLISHED if words & made_by(other)]


@pytest.fixture(scope="module")
def outcome(workplace):
    """A function that runs the toy form of a published command once and returns the completed process."""
    (workplace / "bin" / "python").symlink_to(quick_python.executable())
    path = f"{workplace / 'bin'}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}

    @cache
    def run_once(command: str) -> subprocess.CompletedProcess:
        words = ["bash", "-c", toy_form(command)]
        return subprocess.run(words, cwd=workplace, env=environment, text=True, capture_output=True, timeout=400)

    return run_once


@pytest.mark.parametrize("command", PUBLISHED, ids=PUBLISHED)
def test_published_command(outcome, command):
    """Commands whose files this command needs run first, even if only this test runs."""
    for earlier in needed_by(command):
        assert outcome(earlier).returncode == 0, (
            f"{command}\nneeds what an earlier command makes, which failed: {earlier}"
        )
    result = outcome(command)
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"


def test_published_python(workplace):
    """Each block runs in its own process, which imports the packages of the checkout."""
    for code in blocks("python"):
        result = subprocess.run(
            [quick_python.executable(), "-c", code], cwd=workplace, text=True, capture_output=True, timeout=120
        )
        assert result.returncode == 0, code + result.stderr


def test_quickstart(workplace):
    """Without set-up, on four videos and with short recipes, it trains, tests and prints. A second call only prints."""
    shorten(workplace, ("rsanet_tiny", "tsn_tiny"))
    first = run_script(workplace, "quickstart.sh")
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    table = first.stdout[first.stdout.index("scores   ") :]
    assert re.search(r"quickstart_rsanet_tiny/scores +4 +\d+\.\d\d +- ", table) and "logs/quickstart_" in table
    assert np.load(workplace / "net_runs/quickstart_tsn_tiny/scores.npz")["scores"].shape == (4, 2)
    second = run_script(workplace, "quickstart.sh")
    assert second.returncode == 0 and "Epoch:" not in second.stdout and "Epoch:" in first.stdout
    assert second.stdout.strip() == table.strip()


PROGRAMS = [
    path
    for room in ("benchmarks", "figs", "models", "scripts", "tests")
    for path in sorted(set((ROOT / room).glob("*.py")) - set((ROOT / room).glob("test_*")))
    if re.search(r"argparse\.ArgumentParser\(|make_parser\(", path.read_text())
    and 'if __name__ == "__main__":' in path.read_text()
]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_explains_itself(path):
    words = [quick_python.executable(), "-m", f"{path.parent.name}.{path.stem}", "--help"]
    result = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert result.returncode == 0 and result.stdout.startswith("usage: ") and not result.stderr, result.stderr


def test_help_names_every_recipe_key():
    result = run("main.py", "--help", cwd=ROOT)
    assert result.returncode == 0 and all(f"--{key} " in result.stdout for key in [*KEYS, "resume", "variant"])
