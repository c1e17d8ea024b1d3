"""What CONTRIBUTING.md, `make` and the campaigns promise is there."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import nvg
from tests.support.smoke import ROOT

TREES = ("nvg", "pipelines", "tests", "docs")


def test_every_path_in_contributing_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = {word for word in re.findall(r"`([\w./]+)`", text) if word.startswith(tuple(f"{tree}/" for tree in TREES))}
    assert len(paths) > 20 and [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_make_alone_prints_every_target():
    shown = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert [target for target in targets if not re.search(rf"^make {target} +\w", shown, re.MULTILINE)] == []


def test_campaigns_are_listed_and_an_unknown_one_is_refused():
    command = [sys.executable, "-m", "tests.campaigns"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [line.split()[0] for line in shown.splitlines()]
    report = (ROOT / "docs" / "reports" / "campaigns.md").read_text()
    assert names and [name for name in names if f"| `{name}` |" not in report] == []
    refused = subprocess.run([*command, "none"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "invalid choice: 'none'" in refused.stderr and "addresses" in refused.stderr


def test_the_load_tries_again_as_often_as_the_documentation_tells_clients_to():
    from tests.support.load import RETRIES  # here: it brings the openai client

    assert f"`OpenAI(max_retries={RETRIES})`" in (ROOT / "docs" / "guides" / "serve.md").read_text()


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert importlib.metadata.version("nvg") == nvg.__version__


def test_the_number_of_pinned_packages_is_that_of_the_lock():
    pins = sum(
        "==" in line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    )
    assert f"`requirements.lock` pins all {pins} packages" in (ROOT / "docs" / "reference" / "trust.md").read_text()


def test_functions_that_contributing_names_stand_in_the_file_that_it_names():
    text = (ROOT / "CONTRIBUTING.md").read_text().replace("\n", " ")
    pairs = re.findall(r"`(\w+)`(?: with its default)? (?:to|in) `([\w./]+\.py)`", text)
    assert len(pairs) >= 3
    for name, path in pairs:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{path} has no {name}"
