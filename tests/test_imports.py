"""The house's order: what imports what, what importing costs, and that everything public is documented."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = ("nvg", "pipelines", "scripts", "benchmarks", "experiments", "examples", "tests")
FILES = sorted(path for tree in TREES for path in ROOT.glob(f"{tree}/**/*.py"))
PRODUCT = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("nvg", "pipelines")]

# Every package is a floor of its own, the lowest first: a file imports its own package and what stands before it here.
FLOORS = (
    "nvg.errors",
    "nvg.extras",
    "nvg.config",
    "nvg.precision",
    "nvg.pairing_kernel",
    "nvg.granularity",
    "nvg.autoencoder",
    "nvg.generator",
    "nvg.describe",
    "nvg.imagenet",
    "nvg.storage",
    "nvg.frozen",
    "nvg.tracking",
    "nvg.console",
    "nvg.cluster",
    "nvg.data",
    "nvg.artifacts",
    "nvg.released",
    "nvg.pictures",
    "nvg.pyfunc",
    "nvg.diffusers_pipeline",
    "nvg.training",
    "nvg.evaluation",
    "nvg.model_card",
    "nvg.hub",
    "nvg.serving",
    "nvg.verify",
    "nvg",  # the public face
    "pipelines",
    "nvg.sample",
    "nvg.cli",
    "scripts",
    "tests.support",
    "benchmarks",
    "experiments",
    "examples",
    "tests.campaigns",
    "tests",
)
NEIGHBOURS = ("nvg.training", "nvg.evaluation", "nvg.serving")  # they do not know each other
SCIENCE = (
    *("nvg.errors", "nvg.extras", "nvg.config", "nvg.precision", "nvg.pairing_kernel", "nvg.granularity"),
    *("nvg.autoencoder", "nvg.generator"),
)
# Overrides of these need no docstring: the interface that a class derives from has it.
INTERFACE = {
    "forward",  # torch.nn.Module
    *("read", "count", "fingerprint"),  # nvg.data.records.ImageSource
    *(
        "lr",
        "batches",
        "loss",
        "begin",
        "draw",
        "before_optimizers",
        "after_step",
        "flops",
        "preview",
    ),  # nvg.training.task.Task
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def package(module: str) -> str:
    """The floor that a module stands on: the longest of FLOORS that it begins with."""
    owners = [floor for floor in FLOORS if f"{module}.".startswith(f"{floor}.")]
    owner = max(owners, key=len)
    if owner == "nvg" and module != "nvg":
        raise KeyError(f"{module} has no floor: give its package one")
    return owner


@functools.cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of everything that a file imports, inside functions too, `from nvg import x` as nvg.x."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                if (node.module, alias.name) == ("nvg", "__version__"):
                    continue  # a string of the face, which importing any module of nvg has read already
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in MODULES else str(node.module)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    own = package(module_name(path))
    for line, module in imports(path):
        if module.split(".")[0] not in TREES:
            continue
        assert module in MODULES, f"{path}:{line} imports {module}, which is not there"
        other = package(module)
        assert FLOORS.index(other) <= FLOORS.index(own), f"{path}:{line} imports {module}, from a floor above"
        assert other == own or {own, other} - set(NEIGHBOURS), f"{path}:{line}: {own} must not know {other}"


def test_no_circle_of_files() -> None:
    graph = {name: {other for _, other in imports(path) if other in MODULES} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_no_file_of_tests_is_imported() -> None:
    """Tests share what stands in tests/support."""
    for name, path in MODULES.items():
        for line, module in imports(path):
            last = module.split(".")[-1]
            shared = module not in MODULES or not (last == "conftest" or last.startswith("test_"))
            assert shared, f"{path}:{line}: {name} imports {module}; what tests share belongs into tests/support"


def test_the_science_imports_torch_alone() -> None:
    known = {*sys.stdlib_module_names, "torch", "numpy", "triton"}  # triton comes with torch where that is for GPUs
    readers = ("nvg.config.loading", "nvg.config.text")  # they bring OmegaConf and YAML on first use
    for name, path in MODULES.items():
        if name in readers or package(name) not in SCIENCE:
            continue
        for line, module in imports(path):
            inside = module.split(".")[0] == "nvg" and package(module) in SCIENCE
            assert inside or module.split(".")[0] in known, f"{path}:{line} imports {module}"


def loaded(statement: str) -> set[str]:
    """The top-level modules, and those of nvg in full, that a statement brings into a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    return {name.split(".")[0] for name in names} | {name for name in names if name.startswith("nvg.")}


@pytest.mark.slow
def test_the_science_needs_torch_alone() -> None:
    found = loaded("import nvg.granularity, nvg.autoencoder, nvg.generator")
    assert "torch" in found
    heavy = {"ray", "mlflow", "omegaconf", "fsspec", "PIL", "pyarrow", "transformers", "nvg.storage", "nvg.data"}
    heavy |= {"triton", "sympy"}  # a GPU's, and torch.compile's
    assert not heavy & found


@pytest.mark.slow
def test_the_face_imports_nothing_until_it_is_used() -> None:
    heavy = {"torch", "ray", "mlflow", "omegaconf", "fsspec", "PIL", "numpy"}
    assert not heavy & loaded("import nvg")
    assert not heavy & loaded("import nvg; nvg.config.DERIVED")
    assert {"torch", "nvg.generator"} <= loaded("import nvg; nvg.generator.ContentGenerator")


@pytest.mark.slow
def test_readers_encoders_and_replicas_do_not_pay_for_the_start_of_what_they_never_do() -> None:
    """Ray starts a process for each, and each imports what its job's module does, and loads a model: sympy alone
    (DTensor, torch.compile) takes longer than torch."""
    load = "import nvg; nvg.load('fashion-mnist-fast')"
    found = loaded(f"import pipelines.build_tokens, pipelines.train, pipelines.serve, nvg.serving.deployment; {load}")
    assert {"torch", "nvg.training"} <= found
    assert not {"sympy", "mlflow", "transformers", "matplotlib", "torchmetrics"} & found


def test_the_face_reaches_its_modules() -> None:
    import nvg

    assert callable(nvg.load)
    assert callable(nvg.granularity.structure_codes) and callable(nvg.granularity.structure_embedding)
    assert callable(nvg.config.load)
    assert isinstance(nvg.generator.ContentGenerator, type) and isinstance(nvg.generator.StructureGenerator, type)
    with pytest.raises(AttributeError, match="no attribute 'generators'"):
        getattr(nvg, "generators")  # noqa: B009
    with pytest.raises(ValueError, match="no sampler 'nowhere'"):
        nvg.load("nowhere")


def _is_stub(node: ast.stmt) -> bool:
    """A method of a typing.Protocol, `def f(self): ...`: it describes somebody else's."""
    body = getattr(node, "body", [])
    return len(body) == 1 and ast.unparse(body[0]) == "..."


def undocumented(path: Path) -> Iterator[str]:
    """Public functions, classes and methods of a file that have no docstring, and the file itself."""
    tree = ast.parse(path.read_text())
    if ast.get_docstring(tree) is None:
        yield f"{path}:1"

    def look(body: list[ast.stmt], inside: str, derived: bool) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from look(node.body, inside, derived)
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_") or (derived and node.name in INTERFACE) or _is_stub(node):
                continue  # special methods are Python's own interface
            if ast.get_docstring(node) is None:
                yield f"{path}:{node.lineno} {inside}{node.name}"
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base) for base in node.bases} - {"ABC", "Protocol"}
                yield from look(node.body, f"{node.name}.", bool(bases))

    yield from look(tree.body, "", False)


@pytest.mark.parametrize("path", PRODUCT, ids=module_name)
def test_everything_public_is_documented(path: Path) -> None:
    assert list(undocumented(path)) == []
