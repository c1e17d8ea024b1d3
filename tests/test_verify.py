"""pipelines/verify.py: a good artifact passes, and each fault fails the check that is made for it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvg import config as configuration
from nvg.artifacts import models
from nvg.artifacts.files import checksum
from nvg.autoencoder import Autoencoder
from nvg.data import open_source, tokens
from nvg.data.features import checksums, write_features
from nvg.data.stream import read_view
from nvg.data.tokens import finish, part_name, read_part, write_part
from nvg.errors import DataError, StorageError
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.training.loop import train
from nvg.verify import TokenChecks
from pipelines import verify
from pipelines.build_tokens import Encode, token_format
from pipelines.steps import plan
from tests.support.synthetic import CLASSES, write_images
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config

pytestmark = pytest.mark.slow

SHIPPED = models.ASSETS / "fashion-mnist"
PART, NPY = "part-000001-view1.parquet", "part-000001-view1.npy"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The configuration's file and its output: the shipped tokenizer, and 36 images in two views as its tokens."""
    root = tmp_path_factory.mktemp("verify")
    content = models.model_settings(str(SHIPPED))
    for key in configuration.DERIVED:
        section, _, name = key.partition(".")
        content[section].pop(name, None)
    content["data"] = {
        "source": "folder",
        "train": write_images(root / "images", each=12, size=32),
        "image_size": 32,
        "channels": 1,
        "num_classes": 3,
        "views": 2,
        "unit_images": 8,
        "crop_scale": 1.2,
    }
    content["output"] = str(root / "output")
    (root / "config.yaml").write_text(json.dumps(content))
    config = configuration.load(root / "config.yaml")
    folder = {step: artifact.folder for step, artifact in plan(config).items()}
    state = load_file(SHIPPED / "tokenizer.safetensors")
    models.save_tokenizer(folder["tokenizer"], state, config, class_names=list(CLASSES), metadata={})
    source = open_source(config.data, "train")
    form, encode = token_format(config, folder["tokenizer"], source), Encode(config, folder["tokenizer"])
    expected = {(unit, view) for unit in range(len(source.units)) for view in range(2)}
    for unit, view in expected:
        images, ids, labels, broken = read_view(source, source.units[unit], config.data, view, config.seed)
        row = encode({"images": images.tobytes()})
        columns = {
            "image_id": ids,
            "label": labels,
            "content": np.frombuffer(row["content"], np.uint16).reshape(len(ids), -1),
            "structure": np.frombuffer(row["structure"], np.uint16).reshape(len(ids), -1),
        }
        write_part(folder["tokens"], form, part_name(unit, view), view, columns, broken)
    finish(folder["tokens"], form, expected, {"views": 2, "data_fingerprint": source.fingerprint()})
    return root


@pytest.fixture
def copy(made, tmp_path):
    """The tokens' folder of a copy of the output, and the command line that checks it."""
    shutil.copytree(made / "output", tmp_path / "output")
    command = ["--config", str(made / "config.yaml"), f"output={tmp_path}/output", "--images", "16"]
    return next((tmp_path / "output").glob("tokens-*")), command


def failed(capsys, arguments):
    """The exit code, and the names of the checks that failed."""
    code = verify.main([*arguments])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[1:] for line in lines if line.startswith("  FAIL")]
    return code, {" ".join(words).partition(":")[0] for words in names}


def rewrite(path, change, metadata=None):
    """Change a part's columns (name -> list of rows) or schema metadata, in a well-formed file."""
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    change(columns)
    schema = table.schema.with_metadata({**table.schema.metadata, **(metadata or {})})
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)


def test_a_good_set_passes_by_configuration_and_by_itself(copy, capsys):
    folder, command = copy
    assert verify.main([*command, "--step", "tokens"]) == 0
    out = capsys.readouterr().out
    for line in (
        "ok    counts: 36 images, 72 rows, 10 parts, 0 quarantined",
        "ok    classes: images of 3 classes: 12 / 12 / 12 (min/median/max)",
        "ok    images: 36 tokenized and 0 broken, of 36",
        "100.00% of the tokens the same, 20 images wholly",
        "ok: every check passed",
    ):
        assert line in out
    assert verify.main([str(folder)]) == 0
    assert verify.main(command) == 0  # the tokenizer and the tokens; the generators are not there yet
    assert "ok    round trip: 20 images: " in capsys.readouterr().out
    assert failed(capsys, [*command, "--step", "generators"]) == (1, {"metadata.json"})


def duplicate(folder):
    shutil.copy(folder / PART, folder / "part-000009-view1.parquet")


def duplicate_as_piece(folder):
    shutil.copy(folder / PART, folder / PART.replace(".parquet", "-0000-last.parquet"))


def cut(folder):
    (folder / PART).write_bytes((folder / PART).read_bytes()[:-100])


def flip(folder):
    data = bytearray((folder / PART).read_bytes())
    data[500] ^= 4
    (folder / PART).write_bytes(data)


def of_another_tokenizer(folder):
    form = json.loads(pq.read_schema(folder / PART).metadata[b"nvg"]) | {"fingerprint": "0" * 16}
    rewrite(folder / PART, lambda columns: None, {b"nvg": json.dumps(form)})


def set_value(column, value, row=3):
    def fault(folder):
        def change(columns):
            columns[column][row] = value(columns) if callable(value) else value

        rewrite(folder / PART, change)

    return fault


def element(column, at, value):
    return set_value(column, lambda columns: [*columns[column][3][:at], value, *columns[column][3][at + 1 :]])


def other_names(columns):
    return [code ^ 1 for code in columns["structure"][3]]  # siblings of the last split, swapped


def of_another_image(folder):
    def change(columns):
        for column in ("content", "structure"):
            columns[column].append(columns[column].pop(0))

    for path in folder.glob("part-*"):
        rewrite(path, change)


def other_labels(folder):
    for path in folder.glob("part-*"):
        rewrite(path, lambda columns: columns.update(label=[(label + 1) % 3 for label in columns["label"]]))


def no_stripes(folder):
    for path in folder.glob("part-*"):
        rewrite(path, lambda columns: columns.update(label=[label % 2 for label in columns["label"]]))


def one_token(folder):
    for path in folder.glob("part-*"):
        rewrite(path, lambda columns: columns.update(content=[[7] * len(row) for row in columns["content"]]))


def metadata(**changes):
    def fault(folder):
        about = json.loads((folder / "metadata.json").read_text()) | changes
        (folder / "metadata.json").write_text(json.dumps(about))

    return fault


def quarantine_all(folder):
    item = {"image_id": "x", "path": "x", "reason": "x"}
    for path in folder.glob("part-*"):
        rewrite(path, lambda columns: None, {b"quarantine": json.dumps([item])})
    pq.write_table(pa.Table.from_pylist([item]), folder / "quarantine.parquet")
    metadata(quarantined=1)(folder)


FAULTS = {
    "a part removed": (lambda folder: (folder / PART).unlink(), "parts"),
    "a part of a unit that is not": (duplicate, "parts"),
    "a part twice": (duplicate_as_piece, "parts"),
    "a part cut off": (cut, "part contents"),
    "a byte flipped": (flip, "part contents"),
    "another tokenizer's part": (of_another_tokenizer, "part contents"),
    "a gap": (set_value("label", None), "part contents"),
    "counts": (metadata(rows=71), "counts"),
    "an id twice": (set_value("image_id", lambda columns: columns["image_id"][4]), "ids"),
    "a foreign id": (set_value("image_id", "x"), "ids"),
    "another view's row": (set_value("view", 0), "ids"),
    "a label out of range": (set_value("label", 3), "labels"),
    "a label of its own": (set_value("label", lambda columns: (columns["label"][3] + 1) % 3), "labels"),
    "a class without images": (no_stripes, "classes"),
    "a token out of range": (element("content", 4, 65535), "values"),
    "a code out of range": (element("structure", 4, 255), "values"),
    "a code twice": (set_value("structure", lambda c: [c["structure"][3][1], *c["structure"][3][1:]]), "structure"),
    "other names": (set_value("structure", other_names), "structure"),
    "a collapsed codebook": (one_token, "codebook"),
    "no quarantine": (lambda folder: (folder / "quarantine.parquet").unlink(), "quarantine"),
    "much in quarantine": (quarantine_all, "quarantine"),
    "other class names": (metadata(class_names=["a", "b", "c"]), "configuration"),
    "images left out": (metadata(images=30), "images"),
    "another image's tokens": (of_another_image, "sample"),
    "other labels than the source": (other_labels, "sample"),
    "no metadata": (lambda folder: (folder / "metadata.json").unlink(), "metadata.json"),
    "metadata cut off": (lambda folder: (folder / "metadata.json").write_text('{"views": 2,'), "metadata.json"),
    "metadata of a wrong type": (metadata(views="2"), "metadata.json"),
    "metadata that is a list": (lambda folder: (folder / "metadata.json").write_text("[]"), "metadata.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_tokens_fails_its_check(copy, capsys, fault):
    folder, command = copy
    change, name = FAULTS[fault]
    change(folder)
    code, names = failed(capsys, [*command, "--step", "tokens"])
    assert code == 1 and name in names


def test_a_folder_is_checked_without_its_configuration(copy, capsys):
    folder, _ = copy
    FAULTS["a code twice"][0](folder)
    FAULTS["a foreign id"][0](folder)
    assert failed(capsys, [str(folder)]) == (1, {"structure", "ids"})


def test_no_flipped_byte_changes_the_rows_that_a_part_gives(copy):
    """Pages have checksums, so what training reads is what was written, or nothing."""
    folder, _ = copy
    good, table = (folder / PART).read_bytes(), read_part(str(folder / PART))
    caught = 0
    for at in range(4, len(good), 23):
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        (folder / PART).write_bytes(data)
        try:
            assert read_part(str(folder / PART)).equals(table), f"byte {at} of {len(good)}"
        except DataError:
            caught += 1
    assert caught > 30


@pytest.fixture
def with_features(copy):
    """The tokens' folder, with alignment features."""
    folder, _ = copy
    form = replace(tokens.metadata_format(tokens.read_metadata(str(folder)), str(folder)), feature_width=2)
    for path in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(path)
        columns = {name: np.array(table[name].to_pylist()) for name in ("label", "content", "structure")}
        features = np.random.default_rng(0).standard_normal((table.num_rows, 2 * form.positions)).astype(np.float16)
        columns |= {"image_id": table["image_id"].to_pylist(), "features": features}
        write_part(str(folder), form, path.name, table["view"][0].as_py(), columns, [])
    metadata(feature_width=2)(folder)
    return folder


def not_finite(folder):
    features = np.load(folder / NPY)
    features[3, 2, 1] = np.nan
    write_features(str(folder / PART), features, features.shape[1:])
    rewrite(folder / PART, lambda columns: columns.update(features_crc32=checksums(features).tolist()))


FEATURE_FAULTS = {
    "not finite": (not_finite, "with features that are not finite"),
    "cut": (lambda folder: (folder / NPY).write_bytes((folder / NPY).read_bytes()[:-1]), "is damaged"),
    "missing": (lambda folder: (folder / NPY).unlink(), "is missing: remove"),
    "of no part": (lambda folder: shutil.copy(folder / NPY, folder / "part-000099-view0.npy"), "part-000099-view0.npy"),
}


@pytest.mark.parametrize("fault", FEATURE_FAULTS)
def test_features_are_checked_with_their_parts(with_features, capsys, fault):
    assert verify.main([str(with_features)]) == 0, capsys.readouterr().out
    harm, message = FEATURE_FAULTS[fault]
    harm(with_features)
    capsys.readouterr()
    assert verify.main([str(with_features)]) == 1 and message in capsys.readouterr().out


def test_a_store_that_cannot_be_listed_fails_the_checks_that_need_it(copy, monkeypatch):
    def refuse(folder):
        raise StorageError("the store is down")

    monkeypatch.setattr(tokens, "part_files", refuse)
    checks = {check.name: check for check in TokenChecks(str(copy[0])).run()}
    assert checks["metadata.json"].ok and "the store is down" in checks["parts"].detail
    assert not checks["counts"].ok


# ---- weights ----


@pytest.fixture
def sampler(tmp_path):
    torch.manual_seed(0)
    config = toy_config()
    generators = {"content": ContentGenerator(config.content), "structure": StructureGenerator(config.structure)}
    models.export_sampler(
        str(tmp_path / "sampler"),
        tokenizer=Autoencoder(config.tokenizer).state_dict(),
        config=config,
        parts={name: module.state_dict() for name, module in generators.items()},
        class_names=["cat", "dog"],
        metadata={},
    )
    return tmp_path / "sampler"


def test_a_good_sampler_and_the_shipped_one_pass(sampler, capsys):
    assert failed(capsys, [str(sampler), str(SHIPPED)]) == (0, set())


def spoil(path, name=None, value=float("nan")):
    state = load_file(path)
    state[name or sorted(state)[0]].view(-1)[0] = value
    save_file(state, path)


def not_finite(folder):
    """Behind a right fingerprint."""
    spoil(folder / "content.safetensors")
    about = json.loads((folder / "metadata.json").read_text())
    about["weights"]["content"] = models.fingerprint(load_file(folder / "content.safetensors"))
    (folder / "metadata.json").write_text(json.dumps(about))


def classes(folder):
    about = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(about | {"class_names": ["cat"]}))


def half(folder):
    (folder / "metadata.json").rename(folder / models.HALF)
    about = json.loads((folder / models.HALF).read_text()) | {"parts": ["content"]}
    (folder / models.HALF).write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda folder: spoil(folder / "content.safetensors"), "weights"),
        (lambda folder: spoil(folder / "structure.safetensors"), "weights"),
        (not_finite, "weights"),
        (lambda folder: spoil(folder / "tokenizer.safetensors", value=2.0), "weights"),
        (lambda folder: (folder / "structure.safetensors").unlink(), "weights"),
        (lambda folder: (folder / "content.safetensors").write_bytes(b"x" * 100), "weights"),
        (lambda folder: (folder / "config.yaml").write_text("name: [x"), "config.yaml"),
        (classes, "config.yaml"),
        (half, "metadata.json"),
        (lambda folder: (folder / "metadata.json").unlink(), "metadata.json"),
        (lambda folder: (folder / "metadata.json").write_text('{"kind": "sampler"}'), "metadata.json"),
    ],
)
def test_a_fault_in_a_sampler_fails_its_check(sampler, capsys, change, name):
    change(sampler)
    assert failed(capsys, [str(sampler)]) == (1, {name})


def test_a_training_checkpoint_passes_and_its_faults_are_named(tmp_path, capsys):
    train(ToyTask(), toy_settings(total_steps=4), toy_config(), str(tmp_path))
    folder = tmp_path / "step-00000004"
    assert failed(capsys, [str(folder)]) == (0, set())
    spoil(folder / "ema.safetensors")
    assert failed(capsys, [str(folder)]) == (1, {"files"})
    about = json.loads((folder / "metadata.json").read_text())
    about["files"]["ema.safetensors"] = checksum(folder / "ema.safetensors")
    (folder / "metadata.json").write_text(json.dumps(about))
    assert failed(capsys, [str(folder)]) == (1, {"weights"})
    folder.rename(tmp_path / "step-00000005")
    assert failed(capsys, [str(tmp_path / "step-00000005")]) == (1, {"step", "weights"})


@pytest.mark.parametrize(
    "arguments", [[], ["--step", "tokens"], ["/no/such/folder"], ["--config", "/no.yaml"], ["x", "--images", "0"]]
)
def test_bad_usage_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as stop:
        verify.main(arguments)
    assert stop.value.code == 2
