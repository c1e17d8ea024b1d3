"""The `nvg` command: quick to start, and each command the same as its file."""

import ast
import importlib
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import nvg
from nvg import cli

ROOT = Path(__file__).parents[1]
FILES = {path.stem for path in (ROOT / "pipelines").glob("*.py") if "def main(" in path.read_text()}


def run(*command):
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def seconds(*command):
    start = time.perf_counter()
    assert run(*command).returncode == 0
    return time.perf_counter() - start


def test_help_names_every_command_and_costs_no_more_than_a_start_of_python():
    text = run("-m", "nvg.cli", "--help").stdout
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.does)}$", text, re.M)
    assert max(map(len, text.splitlines())) <= 100
    needed = min(seconds("-m", "nvg.cli", "--help") for _ in range(8))
    alone = min(seconds("-c", "") for _ in range(8))
    assert needed < 0.3 or needed - alone < 0.1, f"{needed:.2f} s, Python alone {alone:.2f} s"


def test_help_imports_nothing_heavy():
    code = "import sys; from nvg import cli; cli.main(['--help']); print(*sys.modules)"
    modules = run("-c", code).stdout.splitlines()[-1].split()
    assert not {"torch", "numpy", "ray", "mlflow", "omegaconf", "fsspec", "PIL", "pipelines", "argparse"} & {*modules}


def test_nvg_alone_prints_help_and_the_version_is_the_packages(capsys):
    assert cli.main([]) == 0
    assert capsys.readouterr().out == cli.usage() + "\n"
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"nvg {nvg.__version__}\n"


def test_the_console_script_is_this_module():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"nvg": "nvg.cli:main"}


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("trian", "did you mean 'train'?"),
        ("train_tokenizer", "did you mean 'train-tokenizer'?"),
        ("--helo", "the commands are run, "),
        ("", "the commands are run, "),
    ],
)
def test_an_unknown_command_is_told_the_nearest_one(wrong, hint, capsys):
    assert cli.main([wrong]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"error: nvg has no command {wrong!r}; {hint}")


def test_every_pipeline_file_is_a_command():
    modules = {command.module for command in cli.COMMANDS.values()}
    assert {f"pipelines.{stem}" for stem in FILES} <= modules
    for module in modules:
        path = ROOT / f"{module.replace('.', '/')}.py"
        functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert "main" in [function.name for function in functions], module


def ends(call, capsys):
    """The exit code, stdout and stderr of a command."""
    try:
        code = call()
    except SystemExit as stop:
        if isinstance(stop.code, str):  # as Python ends with it
            return 1, *capsys.readouterr()[:1], stop.code
        code = stop.code
    return code or 0, *capsys.readouterr()


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("words", [["--help"], ["--no-such-option"], []], ids=["help", "unknown", "none"])
def test_a_command_is_its_file(name, words, capsys, monkeypatch):
    module = importlib.import_module(cli.COMMANDS[name].module)
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
    of_file = ends(module.main, capsys)
    of_command = ends(lambda: cli.main([name, *words]), capsys)
    assert sys.argv == [f"nvg {name}", *words]
    assert of_command[0] == of_file[0]
    for mine, its in zip(of_command[1:], of_file[1:], strict=True):  # argparse breaks the lines of usage by its length
        assert mine.split() == its.replace(f"{module.__name__}.py", f"nvg {name}").split()
    if words == ["--help"]:
        assert of_command[1].startswith(f"usage: nvg {name} ")


@pytest.mark.slow
def test_a_command_started_as_a_process_ends_as_its_file_does():
    words = ["--config", "/no/such.yaml"]
    of_command, of_file = run("-m", "nvg.cli", "train", *words), run("pipelines/train.py", *words)
    assert (of_command.returncode, of_command.stderr) == (of_file.returncode, of_file.stderr)
    assert of_command.returncode == 1 and of_command.stderr == "error: no configuration file at /no/such.yaml\n"
