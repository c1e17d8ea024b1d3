"""Every configuration of conf/, built and run on torch's meta device: shapes are checked, nothing is computed.

This is all that a machine without GPUs can say of the large ones: that their parts fit together at full size.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.schedules import FORMS
from nvg import describe
from nvg.autoencoder import Autoencoder
from nvg.config import load
from nvg.data.tokens import TokenFormat
from nvg.evaluation.classifier import Classifier, ClassifierConfig
from nvg.generator import ContentGenerator, StructureGenerator
from nvg.granularity import GranularitySequence, cluster_means, structure_map
from scripts.release.package_sampler import MOST_BYTES, REFERENCE_FEATURES

ROOT = Path(__file__).parents[2]
CONF = sorted((ROOT / "conf").glob("*.yaml"))
IMAGES = 2


ALIGNED = {False: ("repa.weights=null",), True: ("repa.weights=dinov2", "repa.block=1")}
CASES: list[tuple[Path, tuple[str, ...]]] = [
    (path, ()) for path in CONF
]  # as they are, and the smallest and a large one in every form
CASES += [
    (ROOT / "conf" / name, (*weights, *form))
    for name in ("smoke.yaml", "imagenet_d16.yaml")
    for weights in ALIGNED.values()
    for form in FORMS.values()
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "settings"), CASES, ids=lambda part: part.stem if isinstance(part, Path) else " ".join(part)
)
def test_parts_fit_together(path: Path, settings: tuple[str, ...]) -> None:
    config = load(path, settings)
    tokenizer, form, aligned = config.tokenizer, config.content.tokens, config.repa.weights is not None
    positions, width, last = tokenizer.positions, tokenizer.code_width, tokenizer.last_stage
    with torch.device("meta"):
        autoencoder = Autoencoder(tokenizer)
        content = ContentGenerator(config.content)
        structure = StructureGenerator(config.structure)
        images = torch.empty(IMAGES, tokenizer.channels, tokenizer.image_size, tokenizer.image_size)
        codes = torch.empty(IMAGES, positions, dtype=torch.int64)
        tokens = [torch.empty(IMAGES, 2**stage, dtype=torch.int64) for stage in range(last + 1)]
        labels = torch.empty(IMAGES, dtype=torch.int64)

        latents = autoencoder.latents(images)
        assert latents.shape == (IMAGES, positions, width)
        for stage in range(last + 1):
            means = cluster_means(latents, structure_map(codes, stage), 2**stage)
            assert autoencoder.quantizer.nearest(means).shape == (IMAGES, 2**stage)
        canvases = autoencoder.quantizer.canvases(GranularitySequence(codes, tokens))
        assert [canvas.shape for canvas in canvases] == [latents.shape] * (last + 2)
        assert autoencoder.decode_canvas(canvases[-1]).shape == images.shape

        stages = range(last + 1)
        tables = [content.rotary(codes, stage) for stage in stages]
        differences, hidden = content(canvases[:-1], codes, labels, torch.tensor(list(stages)), tables)
        tokens_of = [2**stage if form == "clusters" else positions for stage in stages]
        assert [one.shape for one in differences] == [(IMAGES, count, width) for count in tokens_of]
        if aligned:
            assert hidden is not None
            assert [one.shape for one in hidden] == [(IMAGES, n, config.repa.feature_width) for n in tokens_of]
        else:
            assert hidden is None
        for stage, difference in zip(stages, differences, strict=True):
            logits = content.logits(difference, codes, stage)
            assert logits.shape == (IMAGES, 2**stage, tokenizer.codebook_size)

        stages = range(1, last)
        noisy, times = [torch.empty(IMAGES, positions, last)] * len(stages), torch.empty(IMAGES, len(stages))
        tables = [structure.rotary(codes, stage) for stage in stages]
        some = (canvases[1:last], codes, labels, torch.tensor(list(stages)), tables)
        assert [one.shape for one in structure(noisy, times, *some)] == [noisy[0].shape] * len(stages)


@pytest.mark.parametrize(("depth", "millions"), [(16, (255, 64)), (20, (497, 125)), (24, (856, 215))])
def test_imagenet_sizes_are_the_papers(depth: int, millions: tuple[int, int]) -> None:
    models = describe.build_on_meta(load(f"conf/imagenet_d{depth}.yaml", ["repa.weights=null"]))
    content, structure = describe.parameters(models.content), describe.parameters(models.structure)
    assert content / 1e6 == pytest.approx(millions[0], rel=0.01)
    assert structure / 1e6 == pytest.approx(millions[1], rel=0.02)
    assert describe.parameters(models.content.backbone.blocks) == pytest.approx(61_440 * depth**3, rel=0.01)
    assert describe.parameters(models.structure.backbone.blocks) == pytest.approx(15_360 * depth**3, rel=0.01)


@pytest.mark.parametrize("depth", [16, 20, 24])
def test_the_heads_of_imagenet_s_configurations_count_with_what_describe_prints(depth: int) -> None:
    path = ROOT / "conf" / f"imagenet_d{depth}.yaml"
    encoder, decoder, content, structure = describe.describe(load(path))[-1].split(", ")
    passes = 4 if load(path).train.gradient_checkpointing else 3  # forward, twice that backward, and once more forward
    total = passes * (float(content) + float(structure)) / 1e3
    head = path.read_text()
    for words in (f"{passes} x ({content} + {structure}) = {total:.2g} TFLOP", f"3 x ({encoder} + {decoder}) "):
        assert words in head, f"{path.name}: its head is to say {words}"


def test_the_head_of_emoji_s_configuration_counts_and_its_packaged_sampler_is_small() -> None:
    path = ROOT / "conf" / "emoji.yaml"
    config = load(path)
    models = describe.build_on_meta(config)
    networks = [models.autoencoder, models.content, models.structure]
    parameters = sum(value.numel() for network in networks for value in network.state_dict().values())
    classifier = Classifier(ClassifierConfig(config.data.num_classes))
    rest = sum(value.numel() for value in classifier.state_dict().values())
    rest += REFERENCE_FEATURES * ClassifierConfig(config.data.num_classes).feature_width
    assert 2 * parameters + 4 * rest < MOST_BYTES
    encoder, decoder, content, structure = map(float, describe.describe(config)[-1].split(", "))
    tokenizer = config.tokenizer_train.steps * config.tokenizer_train.batch_size * (encoder + decoder)
    generators = config.train.steps * config.train.batch_size * (content + structure)
    head = path.read_text()
    assert f"{parameters / 1e6:.1f} million parameters, {2 * parameters / 1e6:.0f} MB as float16" in head
    assert f"{3 * (tokenizer + generators) / 1e6:.1f} PFLOP" in head  # forward, and twice that backward


@pytest.mark.parametrize("page", ["conf/base/imagenet.yaml", "docs/reference/artifacts.md", "docs/guides/imagenet.md"])
def test_pages_agree_on_the_size_of_a_view_of_imagenet(page: str) -> None:
    plain = load(ROOT / "conf" / "imagenet_d16.yaml", ["repa.weights=null"])
    assert f"{describe.row_bytes(plain) * 1_281_167 / 1e9:.1f} GB" in (ROOT / page).read_text()


@pytest.mark.parametrize("weights", ["null", "dinov2"])
@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_describe_counts_the_bytes_that_the_token_schema_stores(path: Path, weights: str) -> None:
    config = load(path, [f"repa.weights={weights}", "repa.block=1"])
    tokenizer = config.tokenizer
    features = config.repa.feature_width if config.repa.weights else None
    form = TokenFormat(
        "", tokenizer.last_stage, tokenizer.positions, tokenizer.codebook_size, [], feature_width=features
    )
    stored = 0
    for field in form.schema():
        if field.name != "image_id":
            size = getattr(field.type, "list_size", 1)
            stored += size * getattr(field.type, "value_type", field.type).bit_width // 8
    assert describe.row_bytes(config) == stored
    assert describe.feature_bytes(config) == (2 * math.prod(form.feature_shape) if form.feature_shape else 0)


def test_describe_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert describe.main(["conf/smoke.yaml", "conf/fashion_mnist.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["config", "---", "smoke", "fashion_mnist"]
    assert len({line.count("|") for line in lines}) == 1
    assert describe.main([str(tmp_path / "none.yaml")]) == 1
    assert "no configuration file" in capsys.readouterr().err
