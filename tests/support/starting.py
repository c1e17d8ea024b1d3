"""Start programs of ours until they have read their arguments, and no further.

As a module it reads, as JSON, a list of [kind, name, [argument lists]], and prints for each what was wrong with which
argument list. Every program runs in a fork of this process, which has imported what most of them do, by each of its
argument lists up to the return of argparse; then the configuration that the arguments name is read, its overrides
included. A mention of a program without arguments is started with --help alone. Programs of Ray and MLflow are looked
up in their click trees.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import json
import os
import re
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
TREES = ("scripts", "benchmarks", "experiments", "examples", "tests")  # what is not installed
PLACEHOLDER = re.compile(r"<?[A-Z][A-Z0-9_]*>?|.*(?:KEY|BUCKET|\.\.\.).*")
CORES = os.cpu_count() or 1
PATIENCE = 200  # seconds for a program to import what it needs and to read all its argument lists
PRELOADED = (  # which many programs import: each of the forks has them already
    *("numpy", "omegaconf", "PIL.Image", "psutil", "pyarrow", "pytest", "torch", "torch.utils.flop_counter"),
    *("nvg.artifacts.models", "nvg.data", "nvg.evaluation.evaluation", "nvg.generator", "nvg.training.jobs"),
    *("nvg.training.generator_task", "nvg.training.tokenizer_task"),
)
CLICK = {"ray": "ray.scripts.scripts:cli", "mlflow": "mlflow.cli:cli", "serve": "ray.serve.scripts:cli"}


class Parsed(BaseException):
    """The program has read its arguments: it goes no further."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        self.arguments = arguments


def main() -> None:
    """Start every program of standard input; print what was wrong as JSON."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # no fork looks at it again
    programs = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        answers = [Path(folder, str(number)) for number in range(len(programs))]
        for number, (program, answer) in enumerate(zip(programs, answers, strict=True)):
            if number >= CORES:
                os.wait()
            if not os.fork():
                in_child(*program, answer)
        with contextlib.suppress(ChildProcessError):  # none is left
            while True:
                os.wait()
        texts = [answer.read_text() if answer.exists() else "" for answer in answers]
    found = [json.loads(text) if text else {"": "the program has ended its process"} for text in texts]
    print(json.dumps([[kind, name, one] for (kind, name, _), one in zip(programs, found, strict=True)]))


def in_child(kind: str, name: str, lists: list[list[str]], answer: Path) -> NoReturn:
    """Write what was wrong with each argument list, as JSON, and end the process."""
    problems = {}
    signal.alarm(PATIENCE)  # a program that reads no arguments would be at work now
    try:
        for module in [module for module in sys.modules if module.split(".")[0] in TREES]:
            del sys.modules[module]  # as in a process of its own, which must find them
        for words in lists:
            problem = of_click(name, words) if kind == "click" else start(kind, name, words)
            if problem:
                problems[" ".join(words)] = problem
    except BaseException:
        problems[""] = traceback.format_exc()
    answer.write_text(json.dumps(problems))
    os._exit(0)


def of_click(name: str, words: list[str]) -> str | None:
    """What is wrong with a command of Ray or MLflow: a subcommand or an option that it does not have."""
    from click import Context

    module, _, attribute = CLICK[name].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    for word in words:
        if word.startswith("-"):
            options = {option for item in command.params for option in item.opts + item.secondary_opts}
            if word.partition("=")[0] not in options | {"--help"}:
                return f"{command.name} has no option {word}"
        elif hasattr(command, "get_command"):
            found = command.get_command(Context(command), word)
            if found is None:
                return f"{command.name} has no subcommand {word}"
            command = found
    return None


def start(kind: str, name: str, arguments: list[str]) -> str | None:
    """Start a program; returns what is wrong with the arguments, or with the configuration that they name."""
    incomplete = "..." in arguments or all(re.fullmatch(r"[a-z][\w-]*", word) for word in arguments)
    pairs = zip(["", *arguments[:-1]], arguments, strict=True) if arguments else ()
    arguments = [word for before, word in pairs if word != "key=value" and (word != "..." or before.startswith("--"))]
    if kind == "entry" and arguments[:1] == ["COMMAND"]:  # nvg COMMAND --help
        arguments = arguments[1:]
    output, path = io.StringIO(), list(sys.path)
    sys.argv = [name, *(word.replace("$PWD", os.getcwd()) for word in arguments)]  # as a shell would
    try:
        with stopping(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if kind == "module":
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            elif kind == "entry":
                module, _, function = name.partition(":")
                raise SystemExit(getattr(importlib.import_module(module), function)())
            else:
                sys.path[0] = str((ROOT / name).parent)
                runpy.run_path(str(ROOT / name), run_name="__main__")
    except Parsed as parsed:
        return of_configuration(parsed.arguments)
    except SystemExit as end:
        if not end.code and "usage:" in output.getvalue():
            return None
        if incomplete and "arguments are required" in output.getvalue():
            return None
        return f"ended with {end.code!r}: {output.getvalue().strip()[-500:]}"
    finally:
        sys.path[:] = path
    return "it has read no arguments"


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Within the block whoever calls parse_args, parse_intermixed_args or pytest.main gets no answer, but `Parsed`."""
    import pytest

    def run_tests(*_: object) -> NoReturn:  # a campaign that is a file of tests
        raise Parsed(argparse.Namespace())

    before = {name: getattr(argparse.ArgumentParser, name) for name in ("parse_args", "parse_intermixed_args")}
    pytest_main = pytest.main

    def stop_after(read: Any) -> Any:
        def parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> NoReturn:
            words = with_values(self, list(sys.argv[1:] if args is None else args))
            raise Parsed(read(self, words, namespace))

        return parse

    try:
        for name, read in before.items():
            setattr(argparse.ArgumentParser, name, stop_after(read))
        pytest.main = run_tests
        yield
    finally:
        pytest.main = pytest_main
        for name, read in before.items():
            setattr(argparse.ArgumentParser, name, read)


def with_values(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """The words with a value for every placeholder of a choice, and of an option's number."""
    choices = next((action.choices for action in parser._get_positional_actions() if action.choices), None)
    result = [str(next(iter(choices))) if choices and word == "NAME" else word for word in words]
    for number in range(1, len(words)):
        action = parser._option_string_actions.get(words[number - 1])
        if action is not None and PLACEHOLDER.fullmatch(words[number]):
            if action.choices:
                result[number] = str(next(iter(action.choices)))
            elif action.type in (int, float):
                result[number] = "1"
    return result


def of_configuration(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the configuration that a command names, its overrides included."""
    from nvg import config as configuration
    from nvg.errors import NvgError

    words = [word for name in ("overrides", "settings") for word in getattr(arguments, name, None) or []]
    if missing := [word for word in words if "=" not in word and not list(ROOT.glob(word))]:
        return f"there is no file {', '.join(missing)}"
    path = getattr(arguments, "config", None)
    if path is None or PLACEHOLDER.fullmatch(path) or "://" in path:
        return None
    overrides = [word for word in words if "=" in word]
    overrides += [word.split(",")[0] for word in getattr(arguments, "vary", None) or []]
    try:
        if "serving" in Path(path).parts:
            configuration.serve_config(configuration.read(path), overrides, where=path)
        elif "eval" in Path(path).parts:  # a file that lies over the configuration of the sampler that it measures
            content = configuration.merged(configuration.read("conf/imagenet_d16.yaml"), configuration.read(path))
            configuration.from_dict(content, overrides, where=path)
        else:
            configuration.load(path, overrides)
    except NvgError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
