"""The house's order: what imports what, what importing costs, and that everything public is documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("nvg/**/*.py"), *ROOT.glob("pipelines/**/*.py")])

# Imports go down, or stay on a floor. `nvg` itself is the public face, and describe a command: both look at all.
FLOORS = {
    "pipelines": 4,
    "nvg.serving": 3, "nvg.training": 3, "nvg.evaluation": 3, "nvg.describe": 3, "nvg.pyfunc": 3,
    "nvg.data": 2, "nvg.generator": 2, "nvg.autoencoder": 2,
    "nvg.granularity": 1, "nvg.config": 1, "nvg.tracking": 1, "nvg.storage": 1, "nvg.lease": 1,
}  # fmt: skip
# Overrides of these need no docstring: the interface that a class derives from has it.
INTERFACE = {
    "forward",  # torch.nn.Module
    "read", "count", "fingerprint",  # nvg.data.records.ImageSource
    "lr", "batches", "loss", "begin", "before_optimizers", "after_step", "preview",  # nvg.training.loop.Task
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def floor(module: str) -> int:
    """The floor of a module. Raises KeyError for one that has none, so that a new package must be given one."""
    if module == "nvg":
        return 5
    parts = module.split(".")
    return FLOORS[parts[0] if parts[0] == "pipelines" else ".".join(parts[:2])]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of everything that a file imports, inside functions too, `from nvg import x` as nvg.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in MODULES else str(node.module)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    own = floor(module_name(path))
    for line, module in imports(path):
        top = module.split(".")[0]
        assert top not in ("tests", "scripts"), f"{path}:{line} imports {module}"
        if top in ("nvg", "pipelines"):
            assert floor(module) <= own, f"{path}:{line} imports {module}, from a floor above"


def loaded(statement: str) -> set[str]:
    """The top-level modules, and those of nvg in full, that a statement brings into a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    return {name.split(".")[0] for name in names} | {name for name in names if name.startswith("nvg.")}


def test_the_science_needs_torch_alone() -> None:
    found = loaded("import nvg.granularity, nvg.autoencoder, nvg.generator")
    assert "torch" in found
    heavy = {"ray", "mlflow", "omegaconf", "fsspec", "PIL", "pyarrow", "transformers", "nvg.storage", "nvg.data"}
    assert not heavy & found


def test_the_face_imports_nothing_until_it_is_used() -> None:
    heavy = {"torch", "ray", "mlflow", "omegaconf", "fsspec", "PIL", "numpy"}
    assert not heavy & loaded("import nvg")
    assert not heavy & loaded("import nvg; nvg.config.DERIVED")
    assert {"torch", "nvg.generator"} <= loaded("import nvg; nvg.generator.ContentGenerator")


def test_readers_encoders_and_replicas_do_not_pay_for_the_start_of_what_they_never_do() -> None:
    """Ray starts a process for each, and each imports what its job's module does: sympy alone (DTensor, torch.compile)
    takes longer than torch."""
    found = loaded("import pipelines.build_tokens, pipelines.train, pipelines.serve, nvg.serving.deployment")
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


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_everything_public_is_documented(path: Path) -> None:
    assert list(undocumented(path)) == []
