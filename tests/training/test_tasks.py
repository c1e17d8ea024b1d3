"""The two tasks in the loop, on tiny models in one process: they learn, and a resumed training is the unbroken one."""

import pytest
import torch

from nvg.artifacts.models import export_sampler, load_sampler
from nvg.generator import ContentGenerator, Sampler, StructureGenerator
from nvg.training.distill_task import DistillTask
from nvg.training.generator_task import GeneratorTask
from nvg.training.loop import Place, train
from nvg.training.tokenizer_task import TokenizerTask
from tests.support.generators import FORMS, awake
from tests.support.recorders import Recorder, SilentBar
from tests.support.toy import toy_settings
from tests.support.toy_config import toy_config
from tests.support.toy_streams import CLASSES, CPU, QUICK, autoencoder_of, image_stream, token_stream

pytestmark = pytest.mark.slow  # trainings of networks, each several times


def tokenizer_task(config, stop_at=None, total=12):
    return TokenizerTask(config, image_stream(stop_at), total, 4, device=CPU)


def generator_task(config, stop_at=None, total=12, features=None):
    autoencoder = autoencoder_of(config)
    stream = token_stream(autoencoder, stop_at, features)
    return GeneratorTask(config, autoencoder, stream, total, class_names=CLASSES, device=CPU)


def distill_task(config, stop_at=None, total=12):
    autoencoder = autoencoder_of(config)
    torch.manual_seed(0)
    teacher = Sampler(
        autoencoder,
        awake(ContentGenerator(config.content)),
        awake(StructureGenerator(config.structure)),
        config.sampler,
        CLASSES,
    )
    return DistillTask(config, teacher, token_stream(autoencoder, stop_at), total, device=CPU)


def run(task, folder, **changes):
    recorder = Recorder(None)
    figures = train(
        task,
        toy_settings(**changes),
        toy_config(),
        str(folder),
        place=Place(bar=SilentBar),
        start_tracking=lambda run_id: recorder,
    )
    return figures, recorder


def state(task):
    return {f"{m}.{k}": v.clone() for m, module in task.modules.items() for k, v in module.state_dict().items()} | {
        f"ema {m}.{k}": v.clone() for m, ema in task.averages.items() for k, v in ema.shadow.items()
    }


def sections_of(form):
    """The sections of a form of both generators."""
    return dict(zip(("content", "structure"), FORMS[form], strict=True))


MAKERS = {
    "tokenizer": (tokenizer_task, {"tokenizer_train": {**QUICK, "revive_every": 3, "revive_until": 1.0}}),
    "generators": (generator_task, {"train": QUICK}),
    "distill": (distill_task, {"distill": {**QUICK, "parts": ["content", "structure"]}}),
    "checkpointed": (generator_task, {"train": {**QUICK, "gradient_checkpointing": True}}),
    "clusters": (generator_task, {"train": QUICK, **sections_of("clusters")}),
    "distill of clusters": (
        distill_task,
        {"distill": {**QUICK, "parts": ["content", "structure"]}, **sections_of("clusters")},
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_resumed_training_is_the_unbroken_one(kind, tmp_path):
    make, sections = MAKERS[kind]
    length = {"total_steps": 8, "slices": 2}
    unbroken = make(toy_config(**sections), total=8)
    run(unbroken, tmp_path / "unbroken", **length)
    with pytest.raises(InterruptedError):
        run(make(toy_config(**sections), stop_at=6, total=8), tmp_path / "broken", **length)
    torch.manual_seed(1234)
    resumed = make(toy_config(**sections), total=8)
    figures, _ = run(resumed, tmp_path / "broken", **length)
    assert figures["resumed_from"] == 4
    expected = state(unbroken)
    for name, value in state(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_gradient_checkpointing_changes_no_weight(tmp_path):
    states = []
    for kind in ("generators", "checkpointed"):
        make, sections = MAKERS[kind]
        task = make(toy_config(**sections))
        run(task, tmp_path / kind, total_steps=4)
        states.append(state(task))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


def test_the_tokenizer_learns_and_uses_its_codes(tmp_path):
    config = toy_config(tokenizer_train={**QUICK, "revive_every": 5, "index_backprop_epochs": 1.0})
    task = tokenizer_task(config, total=60)
    _, recorder = run(task, tmp_path, total_steps=60, checkpoint_every=60, log_every=10)
    assert recorder.points[60]["l2"] < 0.25 * recorder.points[10]["l2"]
    assert recorder.points[60]["codes_used"] > 0.8
    assert recorder.images == ["previews/00000060-reconstruction.png"]


@pytest.mark.parametrize("form", ["positions", "clusters"])
def test_both_generators_learn_and_make_a_sampler(form, tmp_path):
    config = toy_config(train=QUICK, sampler={"flow_steps": 1}, **sections_of(form))
    task = generator_task(config, total=40)
    _, recorder = run(task, tmp_path / "run", total_steps=40, checkpoint_every=40, log_every=10)
    first, last = recorder.points[10], recorder.points[40]
    assert last["cross_entropy"] < first["cross_entropy"] and last["flow"] < first["flow"]
    assert recorder.images == ["previews/00000040-samples.png"]
    assert all(parameter.requires_grad for module in task.modules.values() for parameter in module.parameters())
    export_sampler(
        str(tmp_path / "sampler"),
        tokenizer=autoencoder_of(config).state_dict(),
        parts=task.averaged(),
        config=config,
        class_names=CLASSES,
        metadata={},
    )
    sampler = load_sampler(str(tmp_path / "sampler"))
    assert sampler.generate(["cat", "dog"], seed=0).shape == (2, 8, 8, 1)
    assert (sampler.content.input_scales[1:] != 1).all()  # they were measured on the first batch
    for name, value in sampler.content.state_dict().items():
        assert torch.equal(value, task.averages["content"].shadow[name])


@pytest.mark.parametrize(("form", "total"), [("positions", 60), ("clusters", 100)])
def test_both_generators_are_distilled_and_make_a_sampler(form, total, tmp_path):
    distill = {**QUICK, "parts": ["content", "structure"], "max_guidance": 3.0}
    sampler = {"flow_steps": 25, "content_guidance": 3.0}
    config = toy_config(distill=distill, sampler=sampler, **sections_of(form))
    task = distill_task(config, total=total)
    teacher = {name: value.clone() for name, value in task.teacher.structure.state_dict().items()}
    _, recorder = run(task, tmp_path / "run", total_steps=total, checkpoint_every=total, log_every=total // 5)
    first, *middle, last = (recorder.points[step] for step in range(total // 5, total + 1, total // 5))
    for term in ("flow", "divergence", "estimate"):
        assert last[term] < first[term], term
    # What larger steps are to learn moves with the flow, while that takes guidance in: their error rises first.
    assert last["shortcut"] < max(point["shortcut"] for point in middle)
    assert recorder.images == [f"previews/{total:08d}-samples.png"]
    assert all(torch.equal(value, teacher[name]) for name, value in task.teacher.structure.state_dict().items())
    assert all(parameter.requires_grad for module in task.modules.values() for parameter in module.parameters())
    export_sampler(
        str(tmp_path / "sampler"),
        tokenizer=task.teacher.tokenizer.state_dict(),
        class_names=CLASSES,
        metadata={},
        parts=task.averaged(),
        config=task.sampler_config(),
    )
    sampler = load_sampler(str(tmp_path / "sampler"))
    assert sampler.structure.config.few_step and sampler.content.config.guided and sampler.settings.flow_steps == 1
    assert sampler.generate(["cat", "dog"], seed=0).shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="structure_guidance=3.5: this model has learned guidance, of scales 1 ... 3"):
        sampler.generate(["cat"], structure_guidance=3.5)


@pytest.mark.parametrize("part", ["content", "structure"])
def test_a_part_is_trained_alone(part, tmp_path):
    task = generator_task(toy_config(train={**QUICK, "parts": [part]}), total=2)
    _, recorder = run(task, tmp_path, total_steps=2)
    assert list(task.modules) == [part]
    assert ("flow" in recorder.points[2]) == (part == "structure")
    assert recorder.images == []  # half a sampler draws nothing


def test_alignment_is_trained_and_not_exported(tmp_path):
    config = toy_config(train=QUICK, repa={"weights": "somewhere", "feature_width": 6, "block": 1})
    task = generator_task(config, total=2, features=6)
    before = task.modules["content"].align[0].weight.clone()
    _, recorder = run(task, tmp_path / "run", total_steps=2)
    assert "alignment" in recorder.points[2]
    assert not torch.equal(task.modules["content"].align[0].weight, before)
    export_sampler(
        str(tmp_path / "sampler"),
        tokenizer=autoencoder_of(config).state_dict(),
        parts=task.averaged(),
        config=config,
        class_names=CLASSES,
        metadata={},
    )
    assert load_sampler(str(tmp_path / "sampler")).content.align is None


@pytest.fixture
def frozen_convolution(monkeypatch):
    """A discriminator on a frozen convolution, in place of a vision transformer."""
    from nvg.training import discriminator

    class Backbone(torch.nn.Module):
        width = 16

        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 16, 3, padding=1)
            self.requires_grad_(False)

        def forward(self, images):
            return [self.convolution(images)] * discriminator.TAPS

    def load(url):
        torch.manual_seed(7)
        return discriminator.Discriminator(Backbone())

    monkeypatch.setattr(discriminator, "load_discriminator", load)


def judged(**changes):
    return toy_config(tokenizer_train={**QUICK, "discriminator_weights": "somewhere", **changes})


@pytest.mark.parametrize(("start", "joins"), [(0.0, 3), (0.5, 9)])
def test_the_discriminator_joins_after_its_share_and_has_an_optimizer_of_its_own(
    start, joins, tmp_path, frozen_convolution
):
    config = judged(discriminator_start=start)
    unbroken = tokenizer_task(config)
    _, recorder = run(unbroken, tmp_path / "unbroken")
    with_losses = [step for step in recorder.points if {"discriminator", "lecam"} <= set(recorder.points[step])]
    assert min(with_losses) == joins
    assert set(unbroken.optimizers) == {"tokenizer", "discriminator"}
    assert unbroken.optimizers["discriminator"].param_groups[0]["weight_decay"] == 0.0005
    with pytest.raises(InterruptedError):
        run(tokenizer_task(config, stop_at=10), tmp_path / "broken")
    resumed = tokenizer_task(config)
    run(resumed, tmp_path / "broken")
    expected = state(unbroken)
    assert any(name.startswith("discriminator.") for name in expected)
    assert (expected["logits.means"] != 0).all()
    for name, value in state(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_the_discriminator_learns_nothing_from_the_decoder_s_loss(frozen_convolution):
    gradients = []
    for weight in (0.0, 10.0):
        task = tokenizer_task(judged(discriminator_start=0.0, discriminator_weight=weight))
        batch = next(task.batches(0))
        loss, _ = task.loss(batch, 0, torch.Generator().manual_seed(1))
        loss.backward()
        heads = torch.cat([p.grad.flatten() for p in task.discriminator.heads.parameters()])
        gradients.append((heads, task.autoencoder.decoder.last_layer.weight.grad))
    (heads, decoder), (same, other) = gradients
    assert heads.abs().sum() > 0 and torch.equal(heads, same)
    assert not torch.allclose(decoder, other)
