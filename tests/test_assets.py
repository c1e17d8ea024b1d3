"""What ships with the package: it loads, it is small, and its samples are as good as its card says."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import nvg
from nvg import storage
from nvg.evaluation import metrics
from nvg.evaluation.features import NetworkFile
from nvg.evaluation.reference import load_reference
from scripts.release import model_card

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "nvg" / "assets"
EACH = 30  # samples a class


@pytest.fixture(scope="module", params=["fashion-mnist", "fashion-mnist-fast"])
def asset(request):
    return ASSETS / request.param


@pytest.fixture(scope="module")
def sampler(asset):
    return nvg.load(asset.name)


def test_the_asset_is_half_precision_safetensors_and_small(asset):
    files = list(asset.iterdir())
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    for part in ("tokenizer", "content", "structure"):
        with safe_open(asset / f"{part}.safetensors", framework="pt") as file:
            assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}
    names = {path.name for path in files}
    assert {"config.yaml", "metadata.json", "evaluation.json", "MODEL_CARD.md"} <= names
    assert not [name for name in names if name.endswith((".pt", ".pth", ".pkl", ".bin"))]


@pytest.mark.slow
def test_samples_hold_the_bounds_of_the_card(sampler, asset):
    """A small fixed set: accuracy of at least 0.85 and a Fréchet distance of at most twice the card's.

    A Fréchet distance grows as samples get fewer, and these are 300 against the card's 10,000: hence the factor.
    """
    network = NetworkFile("classifier", str(asset / "classifier.safetensors")).load()
    reference = load_reference(str(asset / "reference.safetensors"))
    labels = list(range(10)) * EACH
    features, logits = network(torch.from_numpy(sampler.generate(labels, seed=1000)))
    accuracy = float((logits.argmax(dim=1) == torch.tensor(labels)).float().mean())
    distance = metrics.frechet_distance(metrics.moments(features), reference.moments)
    card = storage.read_json(str(asset / "evaluation.json"))["figures"]
    assert accuracy >= 0.85, accuracy
    assert distance <= 2 * card["frechet_distance"], (distance, card["frechet_distance"])
    _, recall = metrics.precision_and_recall(features, reference.features)
    assert recall.value >= 0.2, recall  # of 300 samples: their balls leave more uncovered than those of 10,000


def test_the_cards_figures_are_those_of_its_evaluation(asset):
    card = (asset / "MODEL_CARD.md").read_text()
    result = storage.read_json(str(asset / "evaluation.json"))
    for name, value in result["figures"].items():
        if name in result["intervals"]:
            row = re.search(rf"\| `{name}` \| ([-\d.]+) \|", card)
            assert row is not None, name
            assert float(row.group(1)) == pytest.approx(value, rel=5e-3, abs=5e-4), name
    assert result["figures"]["samples"] == 10_000 and result["protocol"]["reference_images"] == 10_000


def test_the_card_is_what_the_program_writes(asset):
    text = (asset / "MODEL_CARD.md").read_text()
    made = text.partition("## How it was made")[2].partition("## Limits")[0]
    rows = dict(re.findall(r"^\| (?!command|---)([^|]+) \| (.+) \|$", made, re.MULTILINE))
    assert {"data", "machine", "commit", "date", "weights", "licence"} <= set(rows)
    assert text == model_card.card(asset.name, storage.read_json(str(asset / "evaluation.json")), rows)


def test_a_sample_is_the_same_alone_and_after_a_reload(sampler, asset):
    again = nvg.load(str(asset))  # a folder is as good as its name
    one, other = sampler.generate(["Bag"], seed=3), again.generate(["Coat", "Bag"], seed=[9, 3])
    assert np.array_equal(one[0], other[1])


def test_the_fast_one_is_the_other_ones_student_and_takes_one_pass_a_stage_and_generator():
    fast, teacher = nvg.load("fashion-mnist-fast"), nvg.load("fashion-mnist")
    assert fast.structure.config.few_step and fast.content.config.guided and fast.settings.flow_steps == 1
    for name, value in teacher.tokenizer.state_dict().items():
        assert torch.equal(value, fast.tokenizer.state_dict()[name])
    passes = {}
    for name in ("structure", "content"):
        network = getattr(fast, name)
        network.register_forward_hook(
            lambda module, inputs, output, name=name: passes.setdefault(name, []).append(len(inputs[0]))
        )
    assert fast.generate(["Bag"], seed=0).shape == (1, 32, 32, 1)
    assert max(passes["structure"]) == max(passes["content"]) == 1  # no second row for guidance
    assert len(passes["structure"]) == fast.tokenizer.config.last_stage - 1
    assert len(passes["content"]) == fast.tokenizer.config.last_stage + 1


@pytest.mark.slow
def test_the_readmes_first_example_draws_its_images_in_15_seconds(tmp_path):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert len([line for line in example.splitlines() if line.strip()]) <= 5
    check = "assert images.shape == (2, 32, 32, 1) and images.dtype.name == 'uint8' and images.std() > 30"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)  # of processors: other tests run beside this one
    subprocess.run([sys.executable, "-c", example + check], cwd=tmp_path, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 15, seconds
