"""What `pip install .` gives: the files of wheel and sdist, what it brings, what draws, and what is asked for.

The environment of these tests is fresh: the wheel, and links to those packages that it requires without extras.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

import nvg
from nvg import cli
from nvg.extras import PACKAGES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
DIRECT = {"numpy", "safetensors", "pillow", "omegaconf", "pyyaml", "fsspec"}  # what we ask for beside torch
BROUGHT = {"antlr4-python3-runtime"}  # by older versions of OmegaConf
Run = Callable[..., subprocess.CompletedProcess[str]]


def alone() -> dict[str, str]:
    """The environment variables without the one that would show another nvg."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def tracked(*trees: str) -> set[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *trees]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it, of a copy of this tree."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in tracked("nvg", "pipelines", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def required(names: Iterable[str]) -> set[str]:
    """The installed packages that some packages require, themselves included, extras aside."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        requirements = map(Requirement, importlib.metadata.requires(name) or ())
        waiting += [item.name for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    return found


def link(name: str, folder: Path) -> None:
    """Put an installed package into a folder, by links to its modules and its metadata."""
    distribution = importlib.metadata.distribution(name)
    for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
        if not (folder / top).exists():
            (folder / top).symlink_to(str(distribution.locate_file(top)))


@pytest.fixture(scope="module")
def plain(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel."""
    folder = tmp_path_factory.mktemp("plain")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--quiet", wheel], env=alone(), check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (own,) = importlib.metadata.distributions(path=[str(packages)], name="nvg")
    direct = [item.name for item in map(Requirement, own.requires or ()) if "extra" not in str(item.marker)]
    assert set(direct) == {"torch", *DIRECT}
    for name in required(direct):
        link(name, packages)
    return folder


@pytest.fixture
def run(plain: Path, tmp_path: Path) -> Run:
    """run(program, *arguments): a program of the fresh environment, away from the repository."""

    def start(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [plain / "bin" / program, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=alone(), capture_output=True, text=True)

    return start


def test_wheel_and_sdist_are_what_an_index_takes(built: Path) -> None:
    files = sorted(map(str, built.iterdir()))
    assert [name.rpartition(".")[2] for name in files] == ["whl", "gz"]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    own = {name for name in names if ".dist-info/" not in name}
    assert own == tracked("nvg", "pipelines")
    assert {"nvg/assets/fashion-mnist/content.safetensors", "nvg/serving/studio/index.html"} <= own
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        assert own <= {name.partition("/")[2] for name in archive.getnames()}


def test_a_plain_installation_brings_little_beside_torch() -> None:
    assert required({"torch", *DIRECT}) - required({"torch"}) <= DIRECT | BROUGHT


def test_the_console_script_draws_with_a_shipped_sampler(run: Run, tmp_path: Path) -> None:
    words = ("sample", "fashion-mnist", "--classes", "Bag,Coat", "--count", "2", "--output", "grid.png")
    done = run("nvg", *words)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 64 and len(picture.convert("L").getcolors() or ()) > 50


def test_a_drawing_is_taken_as_structure(run: Run, tmp_path: Path) -> None:
    picture = Image.new("L", (40, 40), 0)
    picture.paste(255, (5, 5, 25, 30))
    picture.save(tmp_path / "drawing.png")
    done = run("nvg", "sample", "fashion-mnist-fast", "--classes", "Bag", "--structure", "drawing.png", "--stages")
    assert done.returncode == 0 and "The drawing is the structure of stage 1" in done.stdout, done.stderr


def test_importing_the_package_takes_no_time(run: Run) -> None:
    code = "import time; start = time.process_time(); import nvg; nvg.load; print(time.process_time() - start)"
    assert float(run("python", "-c", code).stdout) < 2


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_starts_or_asks_for_its_extra_in_one_line(name: str, run: Run) -> None:
    done, extras = run("nvg", name, "--help"), cli.COMMANDS[name].extras
    if extras:
        first = next(package for extra in extras for package in PACKAGES[extra].values())
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr == f"error: nvg {name} needs {first}: pip install 'nvg[{','.join(extras)}]'\n"
    else:
        assert done.returncode == 0 and done.stdout.startswith(f"usage: nvg {name}"), done.stderr


ELSEWHERE = {
    "models:/nvg@champion": "models:/nvg@champion needs MLflow: pip install 'nvg[mlflow]'",
    "s3://bucket/run": "s3://bucket/run/metadata.json needs s3fs: pip install 'nvg[s3]'",
    "hf://org/name": "hf://org/name/metadata.json needs huggingface_hub: pip install 'nvg[hub]'",
    "gs://bucket/run": "gs://bucket/run/metadata.json: Please install gcsfs to access Google Storage",
}
EACH = """
import os, sys
import nvg.sample
from nvg import cli

os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///no.db"
for model in sys.argv[1:]:
    if not (child := os.fork()):
        sys.argv[:] = ["nvg", "sample", model]
        sys.exit(cli.main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_sampler_elsewhere_asks_for_the_client_of_its_store(run: Run) -> None:
    """Each in a process of its own, forked from one that has imported torch."""
    done = run("python", "-c", EACH, *ELSEWHERE)
    assert done.stderr.splitlines() == [f"error: {line}" for line in ELSEWHERE.values()]
    assert done.stdout.split() == ["1"] * len(ELSEWHERE)


def test_the_citation_names_the_paper_and_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert citation["version"] == nvg.__version__ and paper["url"].endswith("2508.12811")
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author = {{{names}}}" in (ROOT / "README.md").read_text()
    assert f"\n## {nvg.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
