"""What is loaded can do no harm: no pickle runs, no name leads out of a folder, no damage goes without a name."""

import ast
import contextlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import nvg
from nvg import config as configuration
from nvg import storage
from nvg.artifacts import models
from nvg.artifacts.files import checksum
from nvg.autoencoder import Autoencoder
from nvg.data import BrokenImage, BrokenImageError, decode_image, open_source
from nvg.data import tokens as token_parts
from nvg.errors import CheckpointError, ConfigError, DataError, WeightsError
from nvg.evaluation.classifier import load_classifier
from nvg.evaluation.npz import read_images, read_moments
from nvg.evaluation.reference import load_reference
from nvg.frozen import convert as convert_weights
from nvg.frozen.dinov2 import load_dinov2
from nvg.frozen.inception import load_inception
from nvg.frozen.lpips import load_lpips
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.released.checkpoints import TOKENIZER, extract
from nvg.training import checkpoint, jobs
from nvg.training.loop import Place, train
from tests.support.pictures import config as image_config
from tests.support.pictures import encode, pixels, write_tar
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config

ROOT = Path(nvg.__file__).parents[1]
ERRORS = (CheckpointError, ConfigError, DataError, WeightsError, ValueError)

# ---- what the code may call ----

FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "joblib.load",
    "dill.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "os.system",
    "torch.hub.load",
    "pd.read_pickle",
}


def faults(source: str) -> list[str]:
    """The calls of a file that could run what they load, or write where its names say."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            name in FORBIDDEN
            or (name.endswith(("torch.load", "torch.jit.load")) and options.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False")
            or name.endswith((".extractall", ".extract", ".unpack_archive"))
            or options.get("trust_remote_code", "False") != "False"
            or options.get("shell", "False") != "False"
            or (name.endswith(".from_pretrained") and options.get("use_safetensors") != "True")
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("folder", ["nvg", "pipelines", "scripts", "benchmarks"])
def test_no_file_calls_what_runs_the_things_that_it_loads(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files and {str(path): found for path in files if (found := faults(path.read_text()))} == {}


@pytest.mark.parametrize(
    "call",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "eval(x)",
        "pickle.load(f)",
        "yaml.load(f)",
        "tar.extractall(p)",
        "tar.extract(m)",
        "M.from_pretrained(p)",
    ],
)
def test_the_scan_sees_such_calls(call):
    assert len(faults(call)) == 1


# ---- a pickle in the place of every file ----


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def bombs(mark):
    """One pickle in each of the clothes that a loader might look into."""
    plain = pickle.dumps(Bomb(mark))
    zipped = io.BytesIO()
    torch.save({"a": Bomb(mark)}, zipped)
    legacy = io.BytesIO()
    torch.save({"a": Bomb(mark)}, legacy, _use_new_zipfile_serialization=False)
    array = np.empty(1, object)
    array[0] = Bomb(mark)
    arrays, single = io.BytesIO(), io.BytesIO()
    np.savez(arrays, arr_0=array, mu=array, sigma=array)
    np.save(single, array)
    text = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{mark}]]\n".encode()
    return [plain, zipped.getvalue(), legacy.getvalue(), arrays.getvalue(), single.getvalue(), text]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """A tokenizer, a sampler, a training checkpoint and a token set."""
    root = tmp_path_factory.mktemp("trust")
    torch.manual_seed(0)
    config = toy_config()
    autoencoder = Autoencoder(config.tokenizer)
    parts = {"content": ContentGenerator(config.content), "structure": StructureGenerator(config.structure)}
    names = ["cat", "dog"]
    mark = models.save_tokenizer(
        str(root / "tokenizer"), autoencoder.state_dict(), config, class_names=names, metadata={}
    )
    models.export_sampler(
        str(root / "sampler"),
        tokenizer=autoencoder.state_dict(),
        config=config,
        class_names=names,
        metadata={},
        parts={name: module.state_dict() for name, module in parts.items()},
    )
    train(ToyTask(), toy_settings(total_steps=4), config, str(root / "checkpoints"))
    shutil.move(root / "checkpoints" / "step-00000004", root / "training")
    form = token_parts.TokenFormat(mark, 4, 16, 16, names)
    columns = {
        "image_id": [str(n) for n in range(32)],
        "label": [n % 2 for n in range(32)],
        "content": np.zeros((32, 31), np.uint16),
        "structure": np.tile(np.arange(16), (32, 1)),
    }
    token_parts.write_part(str(root / "tokens"), form, token_parts.part_name(0, 0), 0, columns, [])
    token_parts.finish(str(root / "tokens"), form, {(0, 0)}, {"views": 1})
    return root


def resume(folder):
    task = ToyTask()
    checkpoint.restore_checkpoint(
        folder, modules=task.modules, averages=task.averages, optimizers=task.optimizers, identity="toy"
    )


FOLDERS = {
    "tokenizer": models.load_tokenizer,
    "sampler": nvg.load,
    "training": resume,
    "tokens": lambda folder: (token_parts.read_metadata(folder), token_parts.read_part(f"{folder}/{PART}")),
}
PART = token_parts.part_name(0, 0)
LOADERS = {
    "reference.safetensors": load_reference,
    "classifier.safetensors": load_classifier,
    "lpips.safetensors": load_lpips,
    "inception.safetensors": load_inception,
    "vgg.pth": convert_weights.read_state,
    "inception.pth": lambda path: convert_weights.convert_inception(Path(path), Path(path).with_suffix(".out")),
    "ae.ckpt": lambda path: extract(path, TOKENIZER, Path(path).with_suffix(".taken")),
    "images.npz": lambda path: list(read_images(io.BytesIO(Path(path).read_bytes()), 4)),
    "moments.npz": lambda path: read_moments(io.BytesIO(Path(path).read_bytes())),
    "config.yaml": configuration.load,
    "image.png": lambda path: decode_image(Path(path).read_bytes(), 3),
    "metadata.json": storage.read_json,
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_pickle_in_the_place_of_a_file_is_refused_and_never_run(tmp_path, name):
    mark = tmp_path / "executed"
    loader = LOADERS[name]
    for data in bombs(mark):
        path = tmp_path / name
        path.write_bytes(data)
        found = None  # an .npz without moments is no error
        with contextlib.suppress(*ERRORS):
            found = loader(path if name == "vgg.pth" else str(path))
        assert found is None and not mark.exists()


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_pickle_in_the_place_of_an_artifacts_file_is_refused_and_never_run(artifacts, tmp_path, kind):
    mark = tmp_path / "executed"
    for file in sorted((artifacts / kind).iterdir()):
        if file.name in ("quarantine.parquet",) or (kind, file.name) == ("training", "config.yaml"):
            continue  # on record, not read
        folder = tmp_path / file.name
        shutil.copytree(artifacts / kind, folder)
        for data in bombs(mark):
            (folder / file.name).write_bytes(data)
            with pytest.raises(ERRORS):
                FOLDERS[kind](str(folder))
            assert not mark.exists()


def test_a_bomb_is_one(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_backbones_folder_of_pickles_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(bombs(tmp_path / "executed")[1])
        with pytest.raises(WeightsError):
            load_dinov2(str(tmp_path))
    assert convert_weights.main(["vit", "--folder", str(tmp_path)]) == 1
    assert not (tmp_path / "executed").exists()


# ---- damage has a name ----

LARGE = {  # the header of a safetensors file that promises what is not there
    "a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
}


@pytest.mark.parametrize("load", [load_reference, load_classifier])
@pytest.mark.parametrize("data", [b"", b"\xff" * 8, (10**6).to_bytes(8, "little") + b"{", json.dumps(LARGE).encode()])
def test_damaged_files_of_features_are_named(tmp_path, load, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data if data[:1] == b"{" else data)
    with pytest.raises(DataError, match="x.safetensors"):
        load(str(path))


@pytest.mark.parametrize("name", ["tokenizer", "content", "structure"])
@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_a_damaged_file_of_a_sampler_is_named(sampler, name, damage):
    path = sampler / f"{name}.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[: len(data) // 2], "altered": data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], "empty": b""}[damage]
    )
    with pytest.raises(CheckpointError, match=f"{name}.safetensors is damaged"):
        nvg.load(str(sampler))


@pytest.fixture
def sampler(artifacts, tmp_path):
    shutil.copytree(artifacts / "sampler", tmp_path / "sampler")
    return tmp_path / "sampler"


def change_yaml(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["content"].update(new_dial=1), "unknown key 'content.new_dial'.*another version of nvg.*format 2"),
        (lambda c: c["content"].pop("depth"), "'content.depth' must be given.*another version"),
        (lambda c: c["data"].update(num_classes="many"), "data.num_classes"),
        (lambda c: c["tokenizer"].update(blocks=2), "is missing"),
        (lambda c: c["tokenizer"].update(widths=[2**13, 2**13]), "has shape"),  # 15 GB, were they made
        (lambda c: c["content"].update(depth=10**9), "content.depth=1000000000 must be at least 1, at most 128"),
        (lambda c: c.update(content=None), "content is empty: write its keys"),
        (lambda c: c.update(name="${oc.env:HOME}"), "would be looked up on this machine"),
    ],
)
def test_a_configuration_of_another_version_is_named_with_its_key(sampler, change, words):
    change_yaml(sampler / "config.yaml", change)
    with pytest.raises((ConfigError, CheckpointError), match=words):
        nvg.load(str(sampler))


def test_an_artifacts_configuration_follows_no_base(sampler, tmp_path):
    (tmp_path / "base.yaml").write_text("content: {depth: 10000}")
    change_yaml(
        sampler / "config.yaml", lambda c: c.update(base=str(tmp_path / "base.yaml")) or c["content"].pop("depth")
    )
    with pytest.raises(ConfigError, match="'content.depth' must be given"):
        nvg.load(str(sampler))


def test_ten_lines_of_aliases_are_refused_before_they_are_a_billion_values(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="c.yaml: line 2: an alias"):
        configuration.load(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds a thing of unknown kind"),
        ("null", "holds a thing of unknown kind"),
        ('{"kind": "sampler", "format": 3}', "has format 3, this version of nvg reads 2"),
        ('{"kind": "sampler"}', "before the networks became those of the released system"),
        ('{"kind": "sampler", "format": [2]}', "has format .2., this version of nvg reads 2"),
        ('{"kind": "sampler", "format": 2}', "tokenizer must be a str, not None"),
        ('{"kind": "sampler", "format": 2, "tokenizer": 5, "class_names": []}', "tokenizer must be a str, not 5"),
        ('{"kind": "sampler", "format": 2, "tokenizer": "x", "class_names": [1], "parts": []}', "must be strings"),
        ('{"kind": "sampler", "format": 2, "tokenizer": "x", "class_names": ["a"], "parts": []}', "names 1 classes"),
        ('{"kind": "sampler"', "is damaged"),
        ("\ud800", "is damaged"),
        ("[" * 10**5, "is damaged"),
    ],
)
def test_odd_metadata_of_a_sampler_is_named(sampler, content, words):
    (sampler / "metadata.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(CheckpointError, match=f"{words}"):
        nvg.load(str(sampler))


@pytest.mark.parametrize(
    ("moment", "value", "words"),
    [
        ("exp_avg", torch.zeros(2), ": .* does not fit the model"),
        ("step", torch.tensor(-3e30), " is damaged: .*step is -3e\\+30: remove the checkpoint"),
        ("step", torch.tensor(float("nan")), " is damaged: .*step is nan: remove the checkpoint"),
    ],
)
def test_an_optimizer_that_cannot_go_on_is_refused_behind_a_right_checksum(artifacts, tmp_path, moment, value, words):
    shutil.copytree(artifacts / "training", tmp_path / "training")
    path = tmp_path / "training" / "optimizer.safetensors"
    state = load_file(path)
    name = next(key for key in state if key.endswith(moment))
    save_file(state | {name: value}, path)
    about = json.loads((tmp_path / "training" / "metadata.json").read_text())
    about["files"][path.name] = checksum(path)
    storage.write_json(str(tmp_path / "training" / "metadata.json"), about)
    with pytest.raises(CheckpointError, match=f"optimizer.safetensors{words}"):
        resume(str(tmp_path / "training"))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("[]", "damaged"),
        ("null", "damaged"),
        ('"x"', "damaged"),
        ("{", "damaged"),
        ("{}", "fingerprint"),
        ('{"fingerprint": 5, "last_stage": 4, "positions": 16, "codebook_size": 16, "class_names": []}', "fingerprint"),
        ('{"fingerprint": "x", "last_stage": "4", "positions": 16, "codebook_size": 16, "class_names": []}', "last_s"),
        ('{"fingerprint": "x", "last_stage": 3, "positions": 16, "codebook_size": 16, "class_names": []}', "not 2.3"),
        ('{"fingerprint": "x", "last_stage": 4, "positions": 16, "codebook_size": 16, "class_names": [1]}', "class_n"),
        ('{"fingerprint": "x", "x": 4}', "unknown key 'x', perhaps of another version"),
        ("[" * 10**5, "damaged"),
    ],
)
def test_odd_metadata_of_a_token_part_is_a_data_error(artifacts, tmp_path, raw, words):
    table = pq.read_table(artifacts / "tokens" / PART)
    path = tmp_path / PART
    pq.write_table(table.replace_schema_metadata({b"nvg": raw, b"quarantine": "[]"}), path)
    with pytest.raises(DataError, match=f"{PART}.*{words}"):
        token_parts.read_part(str(path))


@pytest.mark.parametrize(
    "raw", ["", "5", "{}", "[5]", '[{"image_id": "x"}]', '[{"image_id": 1, "path": "", "reason": ""}]']
)
def test_an_odd_quarantine_is_a_data_error(artifacts, tmp_path, raw):
    table = pq.read_table(artifacts / "tokens" / PART)
    metadata = {**table.schema.metadata, b"quarantine": raw}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / PART)
    form = token_parts.part_format(table.schema, PART)
    with pytest.raises(DataError, match=f"{PART}: the quarantine"):
        token_parts.read_footers([str(tmp_path / PART)], form, str(tmp_path))


def test_columns_of_another_type_or_with_gaps_are_a_data_error(artifacts, tmp_path):
    table = pq.read_table(artifacts / "tokens" / PART)
    labels = table["label"].to_pylist()
    for column in (pa.array(labels, pa.int64()), pa.array([None, *labels[1:]], pa.int16())):
        pq.write_table(table.set_column(2, "label", column), tmp_path / PART)
        with pytest.raises(DataError, match="not the columns that its metadata names, or gaps"):
            token_parts.read_part(str(tmp_path / PART))


def test_tokens_of_another_number_of_classes_or_tokenizer_are_not_trained_on(artifacts, tmp_path):
    folder = {"tokenizer": str(artifacts / "tokenizer"), "tokens": str(artifacts / "tokens"), "folder": str(tmp_path)}
    config = toy_config(data={"num_classes": 5})
    with pytest.raises(ConfigError, match="are of 2 classes, and data.num_classes=5"):
        jobs.train_generators(config, Place(), **folder)
    shutil.copytree(artifacts / "tokenizer", tmp_path / "other")
    state = load_file(tmp_path / "other" / "tokenizer.safetensors")
    state = {name: value + 1 for name, value in state.items()}
    mark = models.save_tokenizer(str(tmp_path / "other"), state, toy_config(), class_names=["cat", "dog"], metadata={})
    with pytest.raises(ConfigError, match=f"are of tokenizer .*, .*other has {mark}"):
        jobs.train_generators(toy_config(), Place(), **folder | {"tokenizer": str(tmp_path / "other")})


# ---- names ----

NAMES = [
    "../../out.png",
    "/tmp/out.png",
    "a\nb.png",
    "a/../../b.png",
    "x" * 3000 + ".png",
    "\udcff\udcfe.png",
    "a b'\".png",
]


def test_names_in_archives_are_ids_and_never_places(tmp_path):
    """Nothing is written but what a reader names itself, and an id of any bytes comes through a token part."""
    (tmp_path / "in").mkdir()
    members = []
    for number, name in enumerate(NAMES):
        members += [(name, encode(pixels(number))), (name.removesuffix(".png") + ".cls", b"%d" % (number % 3))]
    write_tar(tmp_path / "in" / "a.tar", members)
    before = sorted(tmp_path.rglob("*"))
    source = open_source(image_config(source="webdataset", train=str(tmp_path / "in")), "train")
    records = list(source.read(source.units[0]))
    assert len(records) == len(NAMES) and sorted(tmp_path.rglob("*")) == before
    assert not any(isinstance(record, BrokenImage) for record in records)
    ids = [record.image_id for record in records]
    assert all(name.startswith("a.tar/") for name in ids) and len(set(ids)) == len(ids)
    form = token_parts.TokenFormat("0" * 16, 4, 16, 16, ["a"])
    columns = {
        "image_id": ids,
        "label": [0] * len(ids),
        "content": np.zeros((len(ids), 31)),
        "structure": np.tile(np.arange(16), (len(ids), 1)),
    }
    broken = [BrokenImage(record.image_id, record.path, "x") for record in records]
    out = tmp_path / "tokens"
    token_parts.write_part(str(out), form, token_parts.part_name(0, 0), 0, columns, broken)
    token_parts.finish(str(out), form, {(0, 0)}, {"views": 1})
    assert sorted(path.name for path in out.iterdir()) == ["metadata.json", PART, "quarantine.parquet"]
    assert pq.read_table(out / PART)["image_id"].to_pylist() == ids


def test_links_in_archives_are_named_and_never_followed_and_devices_and_folders_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    source = open_source(image_config(source="webdataset", train=str(tmp_path)), "train")
    links = list(source.read(source.units[0]))
    assert len(links) == 2 and all(isinstance(link, BrokenImage) for link in links)
    assert all(link.reason.startswith("is a link to /etc/passwd, without bytes") for link in links)


@pytest.mark.parametrize("name", ["a/../../b", "../b"])
def test_a_remote_folder_cannot_write_outside_its_copy(name):
    with pytest.raises(ValueError, match="would leave its folder"):
        storage._relative(f"memory://x/{name}", "memory://x")


def test_a_members_size_is_judged_before_it_is_read(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.size = 2**30 + 1
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.fileobj.write(info.tobuf())
    source = open_source(image_config(source="webdataset", train=str(tmp_path)), "train")
    (broken,) = source.read(source.units[0])
    assert isinstance(broken, BrokenImage) and "more than any image" in broken.reason


def test_a_cache_of_another_user_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"nvg-cache-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with fsspec.open("memory://trust/x.json", "w") as file:
        file.write("{}")
    with pytest.raises(PermissionError, match="is another user's"):
        storage.local_folder("memory://trust")


def test_pictures_that_would_start_a_program_are_no_pictures():
    """Pillow would hand PostScript to Ghostscript."""
    with pytest.raises(BrokenImageError, match="none of JPEG, PNG"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", 3)


def test_a_zip_bomb_of_images_is_read_in_pieces(tmp_path):
    """4 GB of zeros in 4 MB: what is in memory is a batch."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 4, 4, 3)})
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        member.write(header.getvalue() + bytes(2**20))
    with (tmp_path / "x.npz").open("rb") as file, pytest.raises(DataError, match="arr_0 ends after 21845"):
        for batch in read_images(file, 1000):
            assert batch.shape == (1000, 4, 4, 3)
