"""Samplers and data sets on the Hugging Face hub, both ways, against a hub on this machine."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import nvg
from nvg import config as configuration
from nvg import hub, model_card, storage
from nvg.data import open_source
from nvg.errors import CheckpointError, StorageError
from nvg.evaluation.meaning import OF_REAL_IMAGES
from nvg.released.importing import LICENCE
from pipelines import export_diffusers, push, run
from tests.support import hub as local
from tests.support.synthetic import write_images

ASSET = Path(nvg.__file__).parent / "assets" / "fashion-mnist-fast"
FASHION = "zalando-datasets/fashion_mnist"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[local.Hub]:
    """A hub that everything of huggingface_hub asks, with a sampler at org/clothes, in two revisions."""
    import huggingface_hub

    with local.running(tmp_path / "hub") as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.address)  # read from HF_ENDPOINT at import
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        path = template[template.index("/{repo_id}") :]
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.address + path)
        monkeypatch.setenv("HF_TOKEN", local.TOKEN)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        repository = running.root / "models" / "org" / "clothes"
        for revision in ("main", "v1.0"):
            shutil.copytree(ASSET, repository / revision)
        (repository / "main" / "metadata.json").write_text("{}")  # only the revision is a sampler
        yield running
        huggingface_hub.HfFileSystem.clear_instance_cache()


@pytest.fixture
def sampler(tmp_path: Path) -> Callable[..., Path]:
    """sampler(**metadata): the folder of a sampler with some of metadata.json changed; None takes a key away."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "generators-0123"
        shutil.copytree(ASSET, folder)
        metadata = json.loads((folder / "metadata.json").read_text()) | changes
        kept = {key: value for key, value in metadata.items() if value is not None}
        (folder / "metadata.json").write_text(json.dumps(kept))
        for name in ("MODEL_CARD.md", "evaluation.json"):
            (folder / name).unlink()
        return folder

    return make


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


# ---- reading ----


def test_a_sampler_is_loaded_by_its_name_and_revision(server: local.Hub) -> None:
    ours = nvg.load("fashion-mnist-fast").generate(["Bag"], seed=5)
    assert np.array_equal(nvg.load("hf://org/clothes@v1.0").generate(["Bag"], seed=5), ours)
    with pytest.raises(CheckpointError, match="hf://org/clothes holds a thing of unknown kind"):
        nvg.load("hf://org/clothes")  # main


@pytest.mark.parametrize("name", ["hf://org/nowhere", "hf://org/clothes@none", "hf://nobody/nothing@v1.0"])
def test_a_repository_that_is_not_there_is_one_line(name: str, server: local.Hub) -> None:
    with pytest.raises(CheckpointError, match=f"^{name} has no metadata.json: it is no folder of this project"):
        nvg.load(name)


def test_a_hub_that_is_away_is_named_with_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"^hf://org/away/metadata.json: .*Look at HF_TOKEN, HF_ENDPOINT") as error:
        nvg.load("hf://org/away")
    assert "\n" not in str(error.value)


def test_a_data_set_is_read_by_a_pattern(server: local.Hub) -> None:
    folder = server.root / "datasets" / "org" / "squares" / "main"
    for number, name in enumerate(("a/train-0.parquet", "a/b/train-1.parquet", "test-0.parquet")):
        images = []
        for label in range(3):
            file = io.BytesIO()
            Image.new("RGB", (16, 16), (80 * label, 10 * number, 0)).save(file, "PNG")
            images.append({"bytes": file.getvalue(), "path": f"{number}-{label}.png"})
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), folder / name)
    config = configuration.load(
        "conf/smoke.yaml",
        [
            "data.source=parquet",
            "data.train=hf://datasets/org/squares/a/**/*.parquet",
            "data.test=hf://datasets/org/squares@main/test-*.parquet",
            "data.class_names=null",
        ],
    )
    source = open_source(config.data, "train")
    records = [record for unit in source.units for record in source.reader().read(unit)]
    assert sorted(record.label for record in records) == [0, 0, 1, 1, 2, 2]
    assert open_source(config.data, "test").count() == 3
    listings = [line for line in server.requests if "/tree/" in line or "paths-info" in line]
    assert len(listings) < 40, listings


def test_a_pattern_takes_one_listing_however_many_files_match(server: local.Hub) -> None:
    folder = server.root / "datasets" / "org" / "many" / "main" / "data"
    folder.mkdir(parents=True)
    for number in range(30):
        (folder / f"{number:02d}.parquet").write_bytes(b"x" * number)
    found = storage.expand_sizes("hf://datasets/org/many/**/*.parquet", (".parquet",))
    assert found == {f"hf://datasets/org/many/data/{number:02d}.parquet": number for number in range(30)}
    assert len([line for line in server.requests if "/tree/" in line]) <= 6, server.requests


# ---- publishing ----


def test_without_yes_nothing_leaves_this_machine(server: local.Hub, capsys: pytest.CaptureFixture[str]) -> None:
    push.main(["fashion-mnist-fast", "org/mine", "--dataset", FASHION])
    said = capsys.readouterr().out
    assert server.requests == []
    assert said.startswith("org/mine: a public model on the Hugging Face hub, 7 files, ")
    assert "Licence: Apache License 2.0\n" in said and re.search(r"  content\.safetensors +3,640,924 bytes\n", said)
    assert said.endswith("Nothing was uploaded: run the same command with --yes.\n")


def test_what_is_pushed_is_loaded_again(
    server: local.Hub, sampler: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sampler(licence=None)
    push.main([str(folder), "org/mine", "--licence", "mit", "--private", "--yes"])
    said = capsys.readouterr().out
    assert f"{server.address}/org/mine: uploaded." in said and 'nvg.load("hf://org/mine")' in said
    assert server.created[0]["name"] == "mine" and {"visibility": "private"}.items() <= server.created[0].items()
    ours = nvg.load(str(folder)).generate(["Bag", "Coat"], seed=2)
    assert np.array_equal(nvg.load("hf://org/mine").generate(["Bag", "Coat"], seed=2), ours)
    uploaded = server.root / "models" / "org" / "mine" / "main"
    assert json.loads((uploaded / "metadata.json").read_text())["licence"] == "mit"
    sections = yaml.safe_load((uploaded / "config.yaml").read_text())
    assert "train" in sections and not {"tracking", "cluster"} & set(sections)
    assert front_matter((uploaded / "README.md").read_text())["license"] == "mit"


def test_a_hub_that_refuses_is_one_line(server: local.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(
        SystemExit, match=r"^error: org/mine: .*401.*: log in with `hf auth login` or set HF_TOKEN, .*$"
    ):
        push.main(["fashion-mnist-fast", "org/mine", "--yes"])
    assert not (server.root / "models" / "org" / "mine").exists()


def test_the_card_is_one_that_the_hub_understands(tmp_path: Path) -> None:
    files = hub.prepare(str(ASSET), "org/clothes", tmp_path, dataset=FASHION)
    data = ModelCard(files.card).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "nvg", hub.TASK)
    assert data.datasets == [FASHION] and {"nvg", "arxiv:2508.12811"} <= set(data.tags)
    result = json.loads((ASSET / "evaluation.json").read_text())
    figures = {item.metric_type: item for item in data.eval_results}
    assert set(figures) == set(result["intervals"]) - {*OF_REAL_IMAGES} == set(data.metrics)
    assert set(result["intervals"]) & {*OF_REAL_IMAGES}  # which the hub would take for the sampler's own
    distance = figures["frechet_distance"]
    assert distance.metric_value == result["figures"]["frechet_distance"] and distance.dataset_type == FASHION
    assert distance.metric_name.startswith("frechet_distance (classifier ") and "10,000 samples" in distance.metric_name
    assert "Draws 32x32 grey pictures" in files.card and 'nvg.load("hf://org/clothes")' in files.card


def test_a_sampler_without_a_card_gets_one_with_figures(sampler: Callable[..., Path], tmp_path: Path) -> None:
    folder, evaluation, target = sampler(), tmp_path / "evaluation", tmp_path / "target"
    evaluation.mkdir()
    target.mkdir()
    result = json.loads((ASSET / "evaluation.json").read_text()) | {"sampler": folder.name}
    (evaluation / "evaluation.json").write_text(json.dumps(result))
    text = hub.prepare(str(folder), "org/mine", target, evaluation=str(evaluation)).card
    sections = re.findall(r"^##? (.+)$", text, re.MULTILINE)
    assert sections == ["mine", "How good it is", "How it was made", "Limits", "Load it", "Licence"]
    assert "Draws 32x32 images of 10 classes, coarse to fine in 5 stages." in text and "no distance on it is" in text
    assert "| `frechet_distance` | 0.2929 | 0.2598 ... 0.326 | yes, <= 0.457 | " in text
    assert "31 content tokens on 4x4 positions" in text and "2,500 steps" in text
    assert 'sampler.generate(["T-shirt/top", "Trouser"], seed=0)' in text
    assert "distilled from the sampler `fashion-mnist`" in text and "nvg run" not in text


def test_the_command_of_a_card_trains_a_sampler_of_this_version_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration.load("conf/smoke.yaml", ["tokenizer_train.steps=7"])
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(config))
    text = model_card.body(config, {"class_names": ["a", "b", "c"], "training": {"steps": 8}}, "mine", None, again=True)
    assert re.findall(r"^##? (.+)$", text, re.MULTILINE) == ["mine", "How it was made", "Limits"]
    (command,) = re.findall(r"```bash\n(.*)\n```", text)
    images = str(write_images(tmp_path / "images", each=2))
    for placeholder, path in {"config.yaml": f"{tmp_path}/config.yaml", "TRAIN": images, "TEST": images}.items():
        command = command.replace(placeholder, path)
    words = command.split()
    assert words[:2] == ["nvg", "run"]
    run.main([*words[2:], f"output={tmp_path}/again", "--dry-run"])
    steps = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " to do " in line]
    assert steps == ["tokenizer", "tokens", "generators", "evaluation"]


def test_no_card_of_a_folder_without_its_configuration_says_how_to_train_it_again(
    sampler: Callable[..., Path], tmp_path: Path
) -> None:
    folder, target = sampler(), tmp_path / "clothes"
    export_diffusers.main([str(folder), str(target)])
    text = (target / "README.md").read_text()
    assert "config.yaml" not in text and "hf://" not in text and "DiffusionPipeline.from_pretrained(folder" in text


@pytest.mark.parametrize(
    ("own", "asked", "fields"),
    [
        ("Apache License 2.0", None, {"license": "apache-2.0"}),
        ("Apache License 2.0", "apache-2.0", {"license": "apache-2.0"}),
        (LICENCE, None, {"license": "other", "license_name": "s-lab-license-1.0-non-commercial"}),
        (None, "cc-by-4.0", {"license": "cc-by-4.0"}),
        (None, None, {}),
    ],
)
def test_the_card_states_the_licence_of_the_weights(
    own: str | None, asked: str | None, fields: dict[str, str], sampler: Callable[..., Path], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    files = hub.prepare(str(sampler(licence=own)), "org/a", target, licence=asked)
    front = front_matter(files.card)
    assert {key: value for key, value in front.items() if key.startswith("license")} == fields
    stated = own or asked
    assert (f"The weights have the licence: {stated}." if stated else "has stated no licence") in files.card
    assert json.loads((target / "metadata.json").read_text()).get("licence") == stated
    assert ("none is stated" in push.summary(files, False)) == (stated is None)


@pytest.mark.parametrize(
    ("own", "words", "message"),
    [
        (LICENCE, ["org/a", "--licence", "mit"], f"--licence mit: the weights of .* have the licence '{LICENCE}'"),
        ("Apache License 2.0", ["org/a", "--licence", "mit"], "--licence mit: the weights of .* have the licence 'Apa"),
        (None, ["org/a", "--licence", "The MIT"], "--licence The MIT: write it as the hub does"),
        (None, ["mine"], "mine: the hub's names are ORG/NAME"),
        (None, ["org/a", "--dataset", "a/b/c"], "--dataset a/b/c: the hub's names are ORG/NAME"),
        (None, ["org/a", "--evaluation", "/no"], "--evaluation /no has no evaluation.json"),
        (None, ["org/a", "--evaluation", str(ASSET)], "--evaluation .* is of fashion-mnist-fast, not of "),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    own: str | None, words: list[str], message: str, sampler: Callable[..., Path]
) -> None:
    with pytest.raises(SystemExit, match=f"^error: {message}") as stop:
        push.main([str(sampler(licence=own)), *words])
    assert "\n" not in str(stop.value)


def test_damaged_weights_are_not_published(sampler: Callable[..., Path]) -> None:
    folder = sampler()
    shutil.copy(folder / "tokenizer.safetensors", folder / "content.safetensors")
    with pytest.raises(SystemExit, match=r"^error: .*content\.safetensors"):
        push.main([str(folder), "org/a", "--yes"])


def test_an_evaluation_that_nothing_names_a_data_set_for_makes_no_model_index(tmp_path: Path) -> None:
    front = front_matter(hub.prepare(str(ASSET), "org/a", tmp_path).card)
    assert "datasets" not in front and not front.get("model-index")
