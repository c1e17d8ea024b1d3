"""Tokenizer and sampler folders: round trips, damage, half-trained samplers, names."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import nvg
from nvg.artifacts import models
from nvg.autoencoder import Autoencoder
from nvg.config import SamplerConfig
from nvg.errors import CheckpointError
from nvg.generator import ContentGenerator, StructureGenerator
from tests.support.generators import FORMS, every_form
from tests.support.toy_config import toy_config

CLASSES = ["cat", "dog"]
OLD = Path(__file__).parent / "old"


@pytest.fixture
def parts():
    torch.manual_seed(0)
    config = toy_config()
    return config, Autoencoder(config.tokenizer), ContentGenerator(config.content), StructureGenerator(config.structure)


def export(folder, parts, names=("content", "structure")):
    config, autoencoder, content, structure = parts
    both = {"content": content.state_dict(), "structure": structure.state_dict()}
    return models.export_sampler(
        str(folder),
        tokenizer=autoencoder.state_dict(),
        parts={name: both[name] for name in names},
        config=config,
        class_names=CLASSES,
        metadata={},
    )


def test_a_tokenizer_comes_back_as_it_was(tmp_path, parts):
    config, autoencoder, *_ = parts
    mark = models.save_tokenizer(
        str(tmp_path), autoencoder.state_dict(), config, class_names=CLASSES, metadata={"images": 3}
    )
    loaded = models.load_tokenizer(str(tmp_path))
    assert not loaded.training
    assert mark == models.fingerprint(loaded.state_dict()) == models.tokenizer_fingerprint(str(tmp_path))
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    autoencoder.eval()
    assert torch.equal(loaded.decode(loaded.encode(images)), autoencoder.decode(autoencoder.encode(images)))


def test_fingerprints_see_names_shapes_and_single_bits():
    state = {"a": torch.zeros(4), "b": torch.ones(2)}
    marks = [
        models.fingerprint(other)
        for other in (
            state,
            {"b": torch.ones(2), "a": torch.zeros(4)},
            {"a": torch.zeros(2, 2), "b": torch.ones(2)},
            {"a": torch.zeros(4), "c": torch.ones(2)},
            {"a": torch.tensor([0.0, 0.0, 0.0, -0.0]), "b": torch.ones(2)},
        )
    ]
    assert marks[0] == marks[1] and len(set(marks)) == 4


def test_altered_tokenizer_weights_are_noticed(tmp_path, parts):
    config, autoencoder, *_ = parts
    models.save_tokenizer(str(tmp_path), autoencoder.state_dict(), config, class_names=CLASSES, metadata={})
    path = tmp_path / "tokenizer.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(CheckpointError, match="damaged: its fingerprint differs"):
        models.load_tokenizer(str(tmp_path))
    path.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match="tokenizer.safetensors is damaged"):
        models.load_tokenizer(str(tmp_path))


def test_a_sampler_comes_back_and_draws(tmp_path, parts):
    assert export(tmp_path, parts) is True
    sampler = nvg.load(str(tmp_path), SamplerConfig(flow_steps=2))
    images = sampler.generate(["dog", 0], seed=1)
    assert images.shape == (2, 8, 8, 1) and images.dtype.name == "uint8"
    assert sampler.settings.flow_steps == 2 and sampler.class_names == CLASSES


def test_loading_draws_no_numbers_that_the_files_replace(tmp_path, parts):
    export(tmp_path, parts)
    before = torch.get_rng_state()
    nvg.load(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def parts_of(form):
    torch.manual_seed(0)
    content, structure = FORMS[form]
    config = toy_config(content=content, structure=structure)
    return config, Autoencoder(config.tokenizer), ContentGenerator(config.content), StructureGenerator(config.structure)


def edit_config(folder, edit):
    """Change what config.yaml of a folder says."""
    path = folder / "config.yaml"
    content = yaml.safe_load(path.read_text())
    edit(content)
    path.write_text(yaml.safe_dump(content))


@every_form
def test_a_sampler_of_every_form_comes_back_as_it_was(form, tmp_path):
    parts = config, *_ = parts_of(form)
    export(tmp_path, parts)
    sampler = nvg.load(str(tmp_path))
    assert sampler.content.config == config.content and sampler.structure.config == config.structure
    for module, before in zip((sampler.content, sampler.structure), parts[2:], strict=True):
        for name, value in before.state_dict().items():
            assert torch.equal(module.state_dict()[name], value), name


def test_a_sampler_from_before_there_were_two_forms_is_of_positions(tmp_path):
    parts = parts_of("positions")
    export(tmp_path, parts)
    before = nvg.load(str(tmp_path)).generate([0, 1], seed=3)

    def as_it_was_written(content):
        del content["content"]["tokens"], content["content"]["position_network"], content["structure"]["canvas_tokens"]

    edit_config(tmp_path, as_it_was_written)
    sampler = nvg.load(str(tmp_path))
    assert (sampler.content.config.tokens, sampler.structure.config.canvas_tokens) == ("positions", "positions")
    assert sampler.content.position_network is None and sampler.structure.position_network is None
    assert (sampler.generate([0, 1], seed=3) == before).all()


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-fast"])
def test_a_shipped_sampler_has_the_form_that_its_configuration_names(name):
    """Those from before there were two forms name none: they are of positions."""
    settings, sampler = models.model_settings(models.sampler_folder(name)), nvg.load(name)
    assert sampler.content.config.tokens == settings["content"].get("tokens", "positions")
    assert sampler.structure.config.canvas_tokens == settings["structure"].get("canvas_tokens", "positions")


@pytest.mark.parametrize(
    ("part", "made", "told"),
    [
        ("content", "positions", "position network"),
        ("content", "positions", "clusters"),
        ("content", "clusters", "positions"),
        ("structure", "positions", "clusters"),
        ("structure", "clusters", "positions"),
    ],
)
def test_weights_of_another_form_than_the_configuration_s_are_refused_by_their_field(part, made, told, tmp_path):
    export(tmp_path, parts_of(made))
    config = parts_of(told)[0]
    edit_config(tmp_path, lambda content: content[part].update(dataclasses.asdict(getattr(config, part))))
    message = rf"config.yaml: {models.FORM_FIELDS[part]} does not fit {part}.safetensors, .* position network: the two"
    with pytest.raises(CheckpointError, match=message):
        nvg.load(str(tmp_path))


@pytest.mark.parametrize(("have", "missing"), [("content", "structure"), ("structure", "content")])
def test_half_a_sampler_says_what_is_missing_and_the_other_half_completes_it(tmp_path, parts, have, missing):
    assert export(tmp_path, parts, (have,)) is False
    assert not (tmp_path / "metadata.json").exists()  # so that no job takes it for finished
    with pytest.raises(CheckpointError, match=rf"the {missing} generator is missing.*train.parts=\[{missing}\]"):
        nvg.load(str(tmp_path))
    assert export(tmp_path, parts, (missing,)) is True
    assert not (tmp_path / models.HALF).exists()
    assert nvg.load(str(tmp_path)).class_names == CLASSES


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds a training: give the folder of a sampler"):
        models.load_sampler(str(OLD / "training"))
    with pytest.raises(CheckpointError, match="no metadata.json"):
        nvg.load(str(tmp_path))


def test_an_unknown_name_lists_what_ships():
    with pytest.raises(ValueError, match="no sampler 'fashoin'.*models:/NAME@champion"):
        nvg.load("fashoin")


def test_a_sampler_is_read_from_a_url(tmp_path, parts):
    export(tmp_path, parts)
    assert nvg.load(f"file://{tmp_path}").class_names == CLASSES


@pytest.mark.slow
def test_importing_the_package_imports_neither_torch_nor_ray():
    code = "import sys, nvg; assert not {'torch', 'ray', 'mlflow', 'omegaconf'} & set(sys.modules); nvg.granularity"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(nvg.__file__).parents[1])
