"""Tables of docs/data.md, docs/custom_data.md and docs/clusters.md say what the code says. Links of all pages work."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from data import DatasetConfig, list_datasets, load_dataset_config
from engine.batch import plan_batch
from engine.config import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [path for name in ("*.md", "docs/*.md", "benchmarks/*.md") for path in sorted(ROOT.glob(name))]


def table(page: str, first: str) -> list[list[str]]:
    """The cells of the rows of the table whose first heading is ``first``, without back quotes."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in lines[start + 2 : end]]


def test_folders_templates_and_classes_of_all_sets():
    found = {}
    for names, folder, template, classes in table("data.md", "set"):
        for name, number in zip(names.split(", "), classes.split(", "), strict=True):
            found[name] = (folder, template, int(number))
    sets = {name: load_dataset_config(name) for name in list_datasets() if name != "toy_something"}
    roots = {name: Path(config.root).resolve().parent.relative_to(ROOT) for name, config in sets.items()}
    assert found == {name: (f"{roots[name]}/", c.image_tmpl, c.num_classes) for name, c in sets.items()}


def test_counts_are_those_that_prepare_expects():
    """A number on the page stands in the program, too."""
    page = (ROOT / "docs" / "data.md").read_text()
    counts = page[page.index("| set | training videos |") : page.index("*Files.*")]
    program = (ROOT / "scripts" / "prepare_forms.py").read_text().replace("_", "")
    numbers = re.findall(r"\d{1,3},\d{3}", counts)
    assert len(numbers) == 16 and [n for n in numbers if n.replace(",", "") not in program] == []


def test_left_and_right_classes():
    config = load_dataset_config("something_v1")
    found = {int(label): (name, int(to)) for label, name, to in table("data.md", "label")}
    assert {label: to for label, (_, to) in found.items()} == config.mirror_pairs
    assert all(config.categories[label] == name for label, (name, _) in found.items())


def test_the_yaml_of_a_set_is_explained_key_by_key(tmp_path):
    page = (ROOT / "docs" / "custom_data.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", page, re.S)[1]
    (tmp_path / "my_set.yaml").write_text(block)
    config = load_dataset_config(str(tmp_path / "my_set.yaml"))
    assert (
        config.categories == ["jump", "run"] and config.name == "my_set" and config.root == str(tmp_path / "my_frames")
    )
    explained = [key for row in table("custom_data.md", "key") for key in row[0].split(", ")]
    assert sorted(explained) == sorted(field.name for field in fields(DatasetConfig))


def test_batches_of_the_table():
    """RSANet's recipe on other numbers of processes."""
    recipe = load_recipe("rsanet_r50", "something_v1")
    for processes, flag, line in table("clusters.md", "processes"):
        size = None if flag == "none" else int(flag.split()[1])
        plan = plan_batch(recipe.global_batch_size, size, int(processes))
        rate = recipe.lr * plan.global_batch / recipe.global_batch_size
        assert line == f"batch: {plan}, lr {rate:g}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.S)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if not target.startswith("http"):
            file = path.parent / target if target else path
            assert file.exists(), f"{path.relative_to(ROOT)} links to {target}, which does not exist"
            if anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
                made = {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in made, f"{path.relative_to(ROOT)} links to {target}{anchor}, which is no heading there"
