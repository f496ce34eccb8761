"""The files around the code: citation, contributing, pre-commit, continuous tests and issue templates."""

import os
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FORMS = [path for path in TEMPLATES if path.name != "config.yml"]


def content(name: str):
    return yaml.safe_load((ROOT / name).read_text())


def test_citation_names_both_papers():
    """The keys that the Citation File Format 1.2.0 requires, of the file and of each reference."""
    citation = content("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "Apache-2.0" and citation["type"] == "software"
    assert [len(paper["authors"]) for paper in citation["references"]] == [5, 5]
    for paper in citation["references"]:
        assert {"type", "title", "authors", "collection-title", "year", "url"} <= paper.keys()
        assert paper["type"] == "conference-paper" and paper["year"] == 2021 and paper["start"] < paper["end"]
        assert all(author.keys() == {"family-names", "given-names"} for author in paper["authors"])
    assert [paper["authors"][0]["family-names"] for paper in citation["references"]] == ["Kim", "Tan"]


def test_hooks_are_local_and_installed():
    """Each command of a hook is a package of requirements-dev.txt. Nothing is fetched."""
    packages = {re.split(r"[>=]", line)[0] for line in (ROOT / "requirements-dev.txt").read_text().splitlines()}
    repositories = content(".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = {hook["id"]: hook for hook in repositories[0]["hooks"]}
    assert {"ruff-check", "ruff-format"} <= hooks.keys()
    for hook in hooks.values():
        assert hook["language"] in ("system", "pygrep")
        if hook["language"] == "system":
            assert Path(hook["entry"].split()[0]).name in packages and hook["entry"].startswith(".venv/bin/")
        else:
            assert re.search(hook["entry"], "words \n", re.M) and not re.search(hook["entry"], "  words\n", re.M)


def test_continuous_tests_call_the_same_file():
    workflow = content(".github/workflows/ci.yml")
    job = workflow["jobs"]["tests"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert job["strategy"]["matrix"]["python"][0] == "3.10"  # the oldest that scripts/setup.sh accepts
    assert "(3, 10)" in (ROOT / "scripts" / "setup.sh").read_text()
    assert {"push", "pull_request"} == workflow[True].keys()  # YAML 1.1 reads "on" as true


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_templates_ask_for_log_and_check_gpu(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    fields = {field["id"]: field for field in form["body"] if field["type"] != "markdown"}
    assert all(field["attributes"]["label"] for field in fields.values())
    assert fields["log"]["validations"]["required"] and "check_gpu" in fields


def test_issue_templates():
    assert [path.stem for path in TEMPLATES] == ["accuracy", "bug", "config"]
    assert content(".github/ISSUE_TEMPLATE/config.yml").keys() <= {"blank_issues_enabled", "contact_links"}
    fields = {path.stem: [field.get("id") for field in yaml.safe_load(path.read_text())["body"]] for path in FORMS}
    assert "list_line" in fields["bug"] and {"last_line", "checklist"} <= set(fields["accuracy"])


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in FORMS)])
def test_named_files_exist(name):
    """Files of this repository in back quotes, commands and labels. Files that a program writes are left out."""
    text = (ROOT / name).read_text()
    places = r"(?:ops|models|engine|scripts|benchmarks|tests|docs|\.ci)/[\w./]+\w|pyproject\.toml"
    found = set(re.findall(rf"(?<![\w/])(?:{places})", text))
    assert found and [path for path in sorted(found) if not (ROOT / path).exists()] == []
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module


def test_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n") and "\n## [Unreleased]\n" in text
    kinds = re.findall(r"^### (\w+)$", text, re.M)
    assert kinds and set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
