"""Every script of examples/ does what it says, and the notebook runs from its first cell to its last."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvg.config import ServeConfig
from tests.support.threads import one_thread

__all__ = ["one_thread"]

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "__init__")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with the shipped model, in a thread and without Ray."""
    import uvicorn

    from nvg.serving.api import Service, create_app
    from nvg.serving.deployment import load_model
    from nvg.serving.engine import Engine
    from tests.support.recorders import Recorded

    config, model = ServeConfig(), load_model(ServeConfig(), "fashion-mnist-fast")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        started, servers = threading.Event(), []

        async def serve() -> None:
            sizes = {
                "max_batch": config.max_batch,
                "max_queue": config.max_queue,
                "batch_wait_ms": config.batch_wait_ms,
            }
            engine = Engine(**sizes, observer=Recorded())
            app = create_app(Service(engine, config, model), key_hashes=frozenset(), observer=Recorded())
            servers.append(uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")))
            started.set()
            await servers[0].serve(sockets=[listening])
            await engine.close()

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        started.wait(60)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        servers[0].should_exit = True
        thread.join(30)


def folder_of_classes(folder: Path) -> Path:
    for name in ("cats", "dogs", "birds"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((40, 50, 3), 90 * number + len(name), np.uint8)).save(
                folder / name / f"{number}.png"
            )
    (folder / "cats" / "broken.png").write_bytes(b"no picture")
    return folder


def database(folder: Path) -> str:
    """An MLflow database with two finished evaluations and one that failed; its address."""
    from nvg import tracking
    from tests.support.toy_config import toy_config

    config = toy_config()
    config.output = str(folder)
    for sampler, distance in (("worse", 2.0), ("better", 1.0), ("failed", 0.5)):
        run = tracking.start(config, "evaluate", folder=str(folder / sampler))
        run.set_tags({"sampler": sampler})
        run.log_metrics({"frechet_distance": distance, "recall": 0.5}, 0)
        run.end("FAILED" if sampler == "failed" else "FINISHED")
    return tracking.tracking_uri(config)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_does_what_it_says(
    name: str,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    output = str(tmp_path / "picture.png")
    words = {
        "draw": ["--output", output],
        "fast_sampling": ["--output", output],
        "your_images": [str(folder_of_classes(tmp_path / "images")), "--output", output],
        "evaluate": ["--each", "5"],
        "hub": ["--output", str(tmp_path / "new")],
        "store": [],
        "track": ["--uri", database(tmp_path / "runs")] if name == "track" else [],
        "serve": ["--address", address, "--output", output],
    }[name]
    says = {
        "draw": "4 pictures of each of Bag, Coat, Sneaker",
        "fast_sampling": r"fashion-mnist: (\d\d) passes .*\nfashion-mnist-fast: 8 passes",
        "your_images": "7 images of birds, cats, dogs\ncannot be read: cats/broken",
        "evaluate": r"0\.[6-9]\d \(95% interval .*recognised as their class\n0\.\d\d .*covered\nOf 50 samples",
        "store": "memory://models/clothes: .*the same pictures: True",
        "hub": "README.md +.*bytes\n.*Licence on the card: Apache License 2.0\n.*the same pictures: True",
        "serve": "Bag, seed 0",
        "track": r"^frechet_distance .*\n1 .*0\.5 +better\n2 .*0\.5 +worse\n$",
    }[name]
    importlib.import_module(f"examples.{name}").main(words)
    said = capsys.readouterr().out
    assert re.search(says, said, re.DOTALL if name == "hub" else 0), said
    if output in words:
        with Image.open(output) as picture:
            assert picture.width >= 32 and np.asarray(picture).std() > 10


def test_what_the_server_refuses_is_one_line(address: str) -> None:
    serve = importlib.import_module("examples.serve")
    with pytest.raises(SystemExit, match="^error: .*Bga"):
        serve.main(["--address", address, "--prompt", "Bga"])
    with pytest.raises(SystemExit, match="^error: http://127.0.0.1:9: .*: start a server with `make serve`$"):
        serve.main(["--address", "http://127.0.0.1:9"])


def test_the_page_lists_every_example_and_says_which_guides_have_none() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert [name for name in SCRIPTS if f"`python -m examples.{name} " not in text] == []
    guides = {path.name for path in (ROOT / "docs" / "guides").glob("*.md")} - {"index.md"}
    assert {*re.findall(r"\(\.\./docs/guides/(\w+\.md)\)", text)} == guides


def test_a_guide_links_to_its_example_and_an_example_to_its_guide() -> None:
    rows = re.findall(
        r"^\| `python -m examples\.(\w+) .*guides/(\w+\.md)\) \|$", (EXAMPLES / "README.md").read_text(), re.M
    )
    assert {name for name, _ in rows} == {*SCRIPTS}
    for name, guide in rows:
        assert f"](../../examples/{name}.py)" in (ROOT / "docs" / "guides" / guide).read_text(), guide
        assert f"docs/guides/{guide}" in (EXAMPLES / f"{name}.py").read_text(), name


def test_a_missing_database_is_one_line_and_none_is_made(tmp_path: Path) -> None:
    track = importlib.import_module("examples.track")
    with pytest.raises(SystemExit, match=f"^error: {tmp_path}/mlflow.db: no such file: .*$"):
        track.main(["--uri", f"sqlite:///{tmp_path}/mlflow.db"])
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_has_ten_cells_and_keeps_no_output() -> None:
    cells = json.loads((EXAMPLES / "structure.ipynb").read_text())["cells"]
    assert len(cells) == 10
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == 5 and not any(cell["outputs"] or cell["execution_count"] for cell in code)


def test_the_notebook_runs() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "structure.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = [
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result"
    ]
    assert shown == [False, True, True, True, True]
