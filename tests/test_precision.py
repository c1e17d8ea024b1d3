"""The precision of arithmetic: what each name tells torch, what stays exact, and that nobody else tells it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from nvg.artifacts.models import ASSETS
from nvg.autoencoder import Autoencoder
from nvg.config import ServeConfig, load
from nvg.evaluation.measure import Measure
from nvg.precision import exact_products, set_precision
from nvg.serving.deployment import load_model
from nvg.training.loop import Loop, Place, Start
from pipelines.build_tokens import Encode
from tests.support.toy import ToyTask, toy_settings
from tests.support.toy_config import toy_config

ROOT = Path(__file__).parent.parent
SHIPPED = str(ASSETS / "fashion-mnist")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # the latter is but a name: nothing is computed on it
NAMES = ("auto", "float32", "tf32", "bfloat16")


@pytest.fixture(autouse=True)
def as_before():
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


def told():
    """What torch would do on a GPU: TF32 in convolutions, in products."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("has_bfloat16", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("precision", "convolutions", "products", "half"),
    [
        ("float32", False, False, "never"),
        ("tf32", True, True, "never"),
        ("bfloat16", True, False, "always"),
        ("auto", True, False, "in a training on a GPU that has it"),
    ],
)
def test_a_name_says_how_a_gpu_computes(
    monkeypatch, precision, convolutions, products, half, training, has_bfloat16, recwarn
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    for flags in ((True, True), (False, False)):  # whatever they were
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags
        dtype = set_precision(precision, CUDA, training=training)
        assert told() == (convolutions, products)
        expected = {"never": False, "always": True}.get(half, training and has_bfloat16)
        assert dtype == (torch.bfloat16 if expected else torch.float32)
    assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if products else "ieee")  # as inductor asks
    assert not recwarn.list


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", NAMES)
def test_on_a_cpu_only_bfloat16_is_not_float32_and_torch_is_left_as_it_is(precision, training):
    before = told()
    assert set_precision(precision, CPU, training=training) == (
        torch.bfloat16 if precision == "bfloat16" else torch.float32
    )
    assert told() == before


@pytest.mark.parametrize("before", [True, False])
def test_products_are_exact_within_and_as_before_after(before):
    torch.backends.cuda.matmul.allow_tf32 = before
    with pytest.raises(ZeroDivisionError), exact_products():
        assert not torch.backends.cuda.matmul.allow_tf32
        1 / 0  # noqa: B018
    assert torch.backends.cuda.matmul.allow_tf32 is before


class Products(TorchFunctionMode):
    """Records for each matrix product whether TF32 was allowed."""

    def __init__(self):
        super().__init__()
        self.allowed = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("addmm", "matmul", "mm", "bmm", "__matmul__", "linear", "einsum", "cdist"):
            self.allowed.append(torch.backends.cuda.matmul.allow_tf32)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["encode", "forward", "soft", "entropy"])
def test_entries_are_looked_up_in_float32_whatever_the_precision(way):
    """Of rounded distances the nearest entry is often another one."""
    torch.manual_seed(0)
    quantizer = Autoencoder(toy_config().tokenizer).quantizer
    latents = torch.randn(3, 16, 4)
    set_precision("tf32", CUDA)
    with Products() as products:
        if way == "encode":
            quantizer.encode(latents)
        else:
            quantizer(latents, soft=way == "soft", entropy=way == "entropy")
    assert len(products.allowed) >= quantizer.last_stage + 1 and not any(products.allowed)
    assert told() == (True, True)


def test_no_other_file_tells_torch_a_precision():
    words = re.compile(r"allow_tf32|fp32_precision|set_float32_matmul_precision")
    product = [path for tree in ("nvg", "pipelines", "benchmarks") for path in (ROOT / tree).rglob("*.py")]
    assert [path.name for path in product if words.search(path.read_text())] == ["precision.py"]


# ---- who uses it ----


@pytest.mark.parametrize("precision", NAMES)
@pytest.mark.parametrize("job", ["training", "tokens", "evaluation", "serving"])
def test_every_job_computes_in_the_precision_that_is_set(monkeypatch, job, precision):
    calls = []

    def recording(name, device, *, training=False):
        calls.append((name, device.type, training))
        return set_precision(name, device, training=training)

    module = {
        "training": "nvg.training.loop",
        "tokens": "pipelines.build_tokens",
        "evaluation": "nvg.evaluation.measure",
        "serving": "nvg.serving.deployment",
    }[job]
    monkeypatch.setattr(f"{module}.set_precision", recording)
    config = load(ROOT / "conf" / "fashion_mnist.yaml", [f"precision={precision}", "repa.weights=null"])
    sampler = None
    if job == "training":
        settings = toy_settings(precision=config.train.precision)
        loop = Loop(ToyTask(), settings, config=config, checkpoints="unused", place=Place(), start=Start())
        loss, _ = loop.forward(next(ToyTask().batches(0)), 0, torch.Generator())
        assert loop.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32) and loss.isfinite()
    elif job == "tokens":
        Encode(config, SHIPPED)
    elif job == "evaluation":
        sampler = Measure(config, SHIPPED, SimpleNamespace(load=lambda device: None)).networks.sampler
    else:
        sampler = load_model(ServeConfig(precision=precision), SHIPPED).sampler
    assert calls == [(precision, "cpu", job == "training")]
    if sampler is not None:
        expected = torch.bfloat16 if precision == "bfloat16" else torch.float32
        assert sampler.content.backbone.blocks[0].project_in.weight.dtype == expected
        assert {value.dtype for value in sampler.tokenizer.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", NAMES)
def test_a_training_has_the_experiment_s_precision_unless_it_has_its_own(precision):
    conf = ROOT / "conf" / "fashion_mnist.yaml"
    config = load(conf, [f"precision={precision}", "distill.steps=9", "train.precision=bfloat16"])
    assert config.train.precision == "bfloat16"
    assert config.tokenizer_train.precision == config.distill.precision == precision
    assert load(conf, [f"precision={precision}"]).distill.precision == "auto"  # no distillation, no setting of it
