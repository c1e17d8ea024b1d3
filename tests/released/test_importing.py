"""The converter of the published weights: small checkpoints of their layout become a sampler that draws as released."""

import asyncio
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file

import nvg
from nvg import config as configuration
from nvg.artifacts.models import ASSETS, licence_of, model_config, read_metadata
from nvg.config import ServeConfig
from nvg.errors import CheckpointError, ConfigError
from nvg.generator import Sampler, noise
from nvg.granularity import split_codes, structure_map
from nvg.released import importing
from nvg.released.checkpoints import GENERATORS, TOKENIZER, Released, extract
from nvg.released.importing import LICENCE, SETTINGS, convert, import_release
from nvg.serving.api import create_app
from nvg.serving.deployment import load_model
from nvg.serving.engine import Engine
from nvg.serving.routes import Service
from scripts.release import package_sampler
from tests.release import checkpoints, ours
from tests.release.recipe import golden, keys_and_shapes
from tests.support.recorders import Recorded

pytestmark = pytest.mark.slow  # checkpoints are written and converted; who converts one is rarely changed
ROOT = Path(nvg.__file__).parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The two checkpoints."""
    folder = tmp_path_factory.mktemp("published")
    return (
        checkpoints.save(folder / "ae.ckpt", checkpoints.tokenizer_state() | {"surprise.weight": torch.ones(2)}),
        checkpoints.save(folder / "d16.ckpt", checkpoints.generators_state()),
    )


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    """The sampler of the two."""
    output = tmp_path_factory.mktemp("runs") / "nvg-d2"
    import_release(*files, str(output))
    return output


# ---- what is drawn ----


class LastSplitByNoise(Sampler):
    """The released system names the two positions of a pair by the noise, where ours does in raster order."""

    def _sample_structure(self, stage, state):
        if stage < self.last_stage:
            return super()._sample_structure(stage, state)
        return split_codes(state.codes, stage, state.noise[..., -1], rename=False)


def drawn(folder, monkeypatch):
    """The stages of the golden run `argmax`, one by one: the likeliest code of the guided logits."""
    numbers = {noise.FLOW: golden("sampler")["noise"], noise.HALVING: torch.full((2, 256), 0.5)}

    def draw(seeds, stage, purpose, shape, distribution):
        return torch.zeros(2, *shape) if purpose == noise.CONTENT else numbers[purpose].clone()

    monkeypatch.setattr(noise, "draw", draw)
    sampler = nvg.load(str(folder))
    sampler.__class__ = LastSplitByNoise
    return sampler.stages(golden("sampler")["labels"].tolist())


def agree(steps):
    """Whether maps and tokens are the golden ones at every stage; after the first that differs none is drawn."""
    numbers = golden("sampler")
    return all(
        torch.equal(structure_map(step.sequence_codes, stage), numbers["argmax.maps"][:, stage].long())
        and torch.equal(step.content[stage], numbers["argmax.tokens"][:, 2**stage - 1 : 2 ** (stage + 1) - 1].long())
        for stage, step in enumerate(steps)
    )


@torch.no_grad()
def test_the_imported_sampler_draws_what_the_released_one_draws(folder, monkeypatch):
    steps, numbers = list(drawn(folder, monkeypatch)), golden("sampler")
    assert agree(steps)
    torch.testing.assert_close(steps[-1].canvas, numbers["argmax.final"], rtol=0, atol=2e-6)
    image = steps[-1].tokenizer.decode_canvas(steps[-1].canvas).clamp(-1, 1)
    torch.testing.assert_close(image, numbers["argmax.image_wide"], rtol=0, atol=5e-5)


def read_here(path, kind, scratch):
    """`read_checkpoint` in this process: starting one takes longer than all else."""
    unknown = extract(str(path), kind, scratch / "taken")
    tensors = load_file(scratch / "taken")
    (scratch / "taken").unlink()
    return Released(tensors, unknown)


@pytest.mark.parametrize("taken_wrong", ["tokenizer", "generators"])
def test_averaged_and_raw_weights_the_wrong_way_round_draw_something_else(taken_wrong, tmp_path, monkeypatch):
    """So that the test above fails for a converter that takes the wrong ones."""
    monkeypatch.setattr(importing, "read_checkpoint", read_here)
    first, second = checkpoints.tokenizer_state(), checkpoints.generators_state()
    if taken_wrong == "tokenizer":
        names = [key for key in first if key.startswith(TOKENIZER.used)]
        first |= {key: first[f"ema_model.{key}"] for key in names}
    else:
        names = [key for key in second if key.startswith("nvgformer.")]
        second |= {f"ema_model.{key}": second[key] for key in names}
    output = tmp_path / "wrong"
    import_release(checkpoints.save(tmp_path / "a", first), checkpoints.save(tmp_path / "b", second), str(output))
    assert not agree(drawn(output, monkeypatch))


# ---- what is written ----


def test_the_folder_is_an_ordinary_sampler_that_names_its_source_and_licence(folder, files):
    assert sorted(path.name for path in folder.iterdir()) == [
        "MODEL_CARD.md",
        "config.yaml",
        "content.safetensors",
        "metadata.json",
        "structure.safetensors",
        "tokenizer.safetensors",
    ]
    metadata = read_metadata(str(folder))
    assert metadata["licence"] == LICENCE == "S-Lab License 1.0, non-commercial"
    assert [item["name"] for item in metadata["source"]["files"].values()] == ["ae.ckpt", "d16.ckpt"]
    assert metadata["source"]["unknown_tensors"] == ["surprise.weight"]  # left out, and named
    assert LICENCE in (folder / "MODEL_CARD.md").read_text()
    sampler = nvg.load(str(folder))
    assert {name: getattr(sampler.settings, name) for name in SETTINGS} == SETTINGS
    assert sampler.class_names == [str(number) for number in range(10)]
    config = sampler.tokenizer.config
    assert (config.image_size, config.grid, config.widths) == (64, 16, [128, 256, 128])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing else survives


def test_the_server_names_the_licence(folder):
    model = load_model(ServeConfig(), str(folder))

    async def listed():
        seen = Recorded()
        engine = Engine(max_batch=1, max_queue=1, batch_wait_ms=1.0, observer=seen)
        app = create_app(Service(engine, ServeConfig(), model), key_hashes=frozenset(), observer=seen)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            described = (await client.get("/v1/models")).json()
        await engine.close()
        return described

    (described,) = asyncio.run(listed())["data"]
    assert described["nvg"]["licence"] == LICENCE


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-fast"])
def test_the_samplers_that_ship_name_their_licence(name):
    record = json.loads((ASSETS / name / "metadata.json").read_text())
    assert record["licence"] == package_sampler.LICENCE


def test_a_licence_that_is_no_text_is_damage(folder, tmp_path):
    record = read_metadata(str(folder)) | {"licence": ["mine"]}
    (tmp_path / "metadata.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="metadata.json is damaged: licence must be a string"):
        licence_of(str(tmp_path))


def test_the_settings_are_those_of_the_published_protocol():
    """conf/eval stands over a sampler's own settings, so the two must agree."""
    protocol = configuration.read(ROOT / "conf" / "eval" / "imagenet_fid50k.yaml")["sampler"]
    assert {name: float(value) for name, value in protocol.items()} == SETTINGS | {"content_temperature": 1.0}


def test_class_names_are_imagenets_where_there_are_a_thousand():
    from nvg.imagenet import shipped_class_names

    names = shipped_class_names()
    assert len(set(names)) == 1000 and names[0].startswith("tench") and names[207].startswith("golden retriever")


# ---- every published key ----


def published_keys():
    """All keys of ae.ckpt and d16.ckpt, with their shapes."""
    raw, generators = keys_and_shapes("ae_checkpoint"), keys_and_shapes("d16")
    averaged = {f"ema_model.{key}": shape for key, shape in raw.items() if key != "total_visited_codes"}
    first = {f"first_stage_model.{key}": shape for key, shape in raw.items() if not key.startswith("loss.")}
    copies = {f"ema_model.{key}": shape for key, shape in generators.items()}
    return raw | averaged, generators | copies | first | keys_and_shapes("repa_encoder")


def test_every_published_key_is_used_or_deliberately_left_out():
    for keys, kind, count in zip(published_keys(), (TOKENIZER, GENERATORS), (1165, 1041), strict=True):
        assert len(keys) == count
        used = [key for key in keys if key.startswith(kind.used)]
        assert [key for key in keys if key not in used and not key.startswith(kind.ignored)] == []
        for prefix in (*kind.used, *kind.ignored):  # no prefix stands there for nothing
            assert any(key.startswith(prefix) for key in keys), prefix


def test_the_published_shapes_are_those_of_d16_and_its_tokenizer():
    from nvg.released.generators import generators
    from nvg.released.tokenizer import convert_tokenizer

    first, second = published_keys()
    with torch.device("meta"):
        tokens = {key: torch.empty(shape) for key, shape in first.items() if key.startswith(TOKENIZER.used)}
        prefix = GENERATORS.stripped
        networks = {
            key.removeprefix(prefix): torch.empty(shape) for key, shape in second.items() if key.startswith(prefix)
        }
        config, _ = convert_tokenizer(tokens)
        content, _, structure, _ = generators(networks, grid=config.grid)
    assert (config.widths, config.blocks, config.decoder_blocks) == ([128, 256, 512, 512, 512], 2, 3)
    assert (config.grid, content.depth, structure.depth, content.num_classes) == (16, 16, 16, 1000)


# ---- what is refused ----


class Command:
    """Unpickled, it runs a command."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def claims_more(path):
    """A checkpoint whose directory claims a content that the file does not store."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    return str(path)


def cut(path, state):
    checkpoints.save(path, state)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return str(path)


def pickled(path, content):
    torch.save(content, path)
    return str(path)


SMALL = {"encoder.conv_in.conv.weight": torch.ones(128, 3, 3, 3)}  # enough to be taken for a tokenizer
FAULTS = {
    "a text": (lambda path: (path.write_text("weights"), str(path))[1], "is cut off, or no checkpoint of torch.save"),
    "cut off": (lambda path: cut(path, {"a": torch.ones(9999)}), "is cut off, or no checkpoint of torch.save"),
    "a bomb": (claims_more, "claims 10000000 bytes of content, more than the file stores"),
    "code": (
        lambda path: pickled(path, {"state_dict": {"a": Command(path.with_name("mark"))}}),
        r"asks to run code \(posix.system\) and was not loaded",
    ),
    "no state_dict": (lambda path: pickled(path, {"model": {}}), "holds no state_dict"),
    "a list": (lambda path: pickled(path, [torch.ones(2)]), "holds no state_dict"),
    "another model": (
        lambda path: checkpoints.save(path, {"conv1.weight": torch.ones(2), "layer1.0.bias": torch.ones(2)}),
        r"is of another model \(it holds conv1, layer1\)",
    ),
    "averages alone": (
        lambda path: checkpoints.save(path, checkpoints.prefixed("ema_model.", SMALL)),
        "holds no tensor under encoder., decoder., quantize., the weights that are used",
    ),
    "a stretched tensor": (
        lambda path: checkpoints.save(path, {"encoder.conv_in.conv.weight": torch.ones(1).expand(10**12)}),
        "claims 1000000000000 numbers of encoder.conv_in.conv.weight",
    ),
    "whole numbers of another kind": (
        lambda path: checkpoints.save(path, {"encoder.conv_in.conv.weight": torch.ones(3, dtype=torch.complex64)}),
        "holds encoder.conv_in.conv.weight in a form that weights do not have",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(fault, tmp_path):
    make, message = FAULTS[fault]
    with pytest.raises(CheckpointError, match=f"^{message}") as caught:
        extract(make(tmp_path / "ae.ckpt"), TOKENIZER, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["ae.ckpt"]  # nothing is written, and nothing was run


class Greedy:
    """Unpickled, it takes 20 GB."""

    def __reduce__(self):
        return bytearray, (20 * 10**9,)


IN_FULL = FAULTS | {
    "missing": (lambda path: str(path), ": no such file"),
    "much memory": (
        lambda path: pickled(path, {"state_dict": {"a": Greedy()}}),
        "asks for more memory than its content needs",
    ),
}


@pytest.mark.parametrize("fault", ["missing", "code", "much memory"])
def test_the_message_begins_with_the_option_and_the_file_and_no_folder_appears(fault, files, tmp_path):
    make, message = IN_FULL[fault]
    path = make(tmp_path / "ae.ckpt")
    with pytest.raises(CheckpointError, match=f"^--tokenizer {path}:? ?{message.removeprefix(': ')}"):
        import_release(path, files[1], str(tmp_path / "out"))
    assert {item.name for item in tmp_path.iterdir()} <= {"ae.ckpt"}


@pytest.mark.parametrize(("wrong", "right"), [(TOKENIZER, GENERATORS), (GENERATORS, TOKENIZER)])
def test_a_file_in_the_place_of_the_other_is_told_where_it_belongs(wrong, right, files, tmp_path):
    path = files[0] if right is TOKENIZER else files[1]
    with pytest.raises(CheckpointError, match=f"^holds the {right.name}: give it as {right.option}$"):
        extract(path, wrong, tmp_path / "out")


KEYS = {
    "encoder.mid.block_1.conv1.conv.weight": 0,
    "decoder.up.1.upsample.conv.conv.bias": 0,
    "quantize.quant_resi.4.bias": 0,
    "encoder.down.1.block.0.nin_shortcut.conv.weight": 0,
    "scale_factors": 1,
    "content_blocks.1.linear1.weight": 1,
    "structure_head.linear.bias": 1,
}


# Names in messages on a shape: the converter renames a tokenizer's tensors before it compares them.
OURS = {
    "encoder.mid.block_1.conv1.conv.weight": "encoder.middle.0.conv1.weight",
    "decoder.up.1.upsample.conv.conv.bias": "decoder.body.",
    "quantize.quant_resi.4.bias": "quantizer.convolutions.4.bias",
    "encoder.down.1.block.0.nin_shortcut.conv.weight": "encoder.body.3.skip.weight",
}


@pytest.mark.parametrize("change", ["missing", "of another shape", "beside a foreign one"])
@pytest.mark.parametrize("key", KEYS)
def test_a_tensor_that_does_not_fit_is_named_with_its_file(key, change, states):
    state = states[KEYS[key]]
    if change == "missing":
        del state[key]
    elif change == "of another shape":
        state[key] = torch.zeros(5)
    else:
        state[f"{key}.more"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        converted(states)
    message = str(caught.value)
    assert message.startswith(("--tokenizer ae.ckpt: ", "--generators d16.ckpt: ")[KEYS[key]])
    assert "\n" not in message and (key in message or OURS.get(key, "?") in message)


def converted(states):
    """What `convert` makes of the used tensors of two files."""
    kinds, names = (TOKENIZER, GENERATORS), ("ae.ckpt", "d16.ckpt")
    return convert(
        {kind: (Path(name), Released(state, [])) for kind, name, state in zip(kinds, names, states, strict=True)}
    )


@pytest.fixture
def states(tensors):
    """The used tensors of the two files, to be changed."""
    return [dict(state) for state in tensors]


@pytest.fixture(scope="module")
def tensors():
    return checkpoints.tokenizer(), ours.released_state()


def test_files_of_two_releases_are_refused(states):
    states[0]["quantize.embedding.weight"] = torch.zeros(65, 32)
    with pytest.raises(CheckpointError, match="d16.ckpt draws 64 codes of 32 numbers, and ae.ckpt has 65 of 32"):
        converted(states)


def test_an_output_that_is_there_is_not_touched(files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="--output .*out is there already"):
        import_release(*files, str(tmp_path / "out"))
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_the_command_says_what_it_wrote_and_under_which_licence(files, tmp_path, capsys):
    from pipelines.import_release import main

    output = str(tmp_path / "out")
    words = ["--tokenizer", files[0], "--generators", files[1], "--output", output]
    main(words)
    told = capsys.readouterr().out
    assert told.startswith(f"{output}: nvg_d2, 64x64 images of 10 classes.") and LICENCE in told
    with pytest.raises(SystemExit, match=r"^error: --output .* is there already"):
        main(words)


# ---- memory ----

# VmHWM is of the program alone; ru_maxrss also counts the process that it was forked from, here this one.
MEASURED = """
import re, resource, sys
from pathlib import Path
from nvg.released.importing import import_release
import_release(*sys.argv[1:])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
print(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def half_of_d16():
    """Keys and shapes of the released generators at depth 8, with 64 codes: half the blocks, half of every width."""
    shapes = {}
    for key, shape in keys_and_shapes("d16").items():
        if ".projector." not in key and not ("_blocks." in key and int(key.split(".")[2]) >= 8):
            shapes[key] = tuple(side // 2 if side % 512 == 0 else side for side in shape)
    return shapes | {"nvgformer.cls_head.linear.weight": (64, 32), "nvgformer.cls_head.linear.bias": (64,)}


def test_reading_and_converting_take_less_memory_than_twice_the_file(files, tmp_path):
    state = {key: torch.rand(shape) for key, shape in half_of_d16().items()}
    state |= {f"ema_model.{key}": value.clone() for key, value in state.items()}
    path = checkpoints.save(tmp_path / "d8.ckpt", state)
    size = os.path.getsize(path)
    assert 250e6 < size < 400e6
    command = [sys.executable, "-c", MEASURED, files[0], path, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = dict(zip(("parent", "child"), map(int, done.stdout.split()), strict=True))
    assert {name: peak for name, peak in peaks.items() if peak >= 2 * size} == {}
    assert model_config(str(tmp_path / "out")).content.depth == 8
