"""The classifier on made-up image sets: it learns any size, channels and classes, and comes back from its file."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from nvg.evaluation.classifier import (
    Classifier,
    ClassifierConfig,
    accuracy,
    load_classifier,
    one_cycle,
    save_classifier,
    train_classifier,
)


class Stripes:
    """A class is a direction and width of stripes; noise on it. Batches as nvg.data.stream gives them."""

    def __init__(self, *, classes: int, channels: int, side: int, count: int = 640) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(classes, (count,), generator=generator)
        angle = self.labels * torch.pi / classes
        rows, columns = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
        phase = torch.rand(count, generator=generator) * 6.28
        along = angle.cos().view(-1, 1, 1) * rows + angle.sin().view(-1, 1, 1) * columns
        wave = (along * 20 + phase.view(-1, 1, 1)).sin()[..., None].expand(-1, -1, -1, channels)
        noise = torch.randn(wave.shape, generator=generator) * 0.3
        self.images = ((wave + noise).clamp(-1, 1) * 127 + 128).to(torch.uint8)  # (N, H, W, C)

    def batches(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(32):
            yield {"images": self.images[rows], "labels": self.labels[rows]}


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "channels", "side"), [(2, 1, 28), (7, 3, 64)])
def test_it_learns_classes_of_any_size_and_channels(classes: int, channels: int, side: int) -> None:
    data = Stripes(classes=classes, channels=channels, side=side)
    model = train_classifier(data.batches, images_per_epoch=640, num_classes=classes, channels=channels, epochs=4.0)
    assert not model.training
    assert accuracy(model, data.batches(0)) > 0.95


def test_training_is_a_function_of_batches_and_seed_and_leaves_the_global_generator_alone() -> None:
    data = Stripes(classes=2, channels=1, side=32, count=128)

    def train(seed: int) -> Tensor:
        model = train_classifier(
            data.batches, images_per_epoch=128, num_classes=2, channels=1, epochs=1.0, seed=seed, size=16
        )
        return model.head.weight.detach()

    before = torch.get_rng_state()
    first = train(0)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, train(0)) and not torch.equal(first, train(1))


def test_epochs_may_be_a_fraction() -> None:
    data = Stripes(classes=2, channels=1, side=16, count=128)
    seen: list[int] = []
    train_classifier(
        data.batches,
        images_per_epoch=128,
        num_classes=2,
        channels=1,
        size=16,
        epochs=1.5,
        on_step=lambda images, loss: seen.append(images),
    )
    assert seen == [32] * 6


def test_the_learning_rate_goes_up_then_down() -> None:
    shares = [one_cycle(progress / 100) for progress in range(101)]
    assert shares.index(max(shares)) == 25 and max(shares) == 1.0
    assert min(shares) > 0 and shares[25:] == sorted(shares[25:], reverse=True) and shares[-1] <= 0.02


def test_bytes_and_floats_are_the_same_image_and_batch_mates_do_not_matter() -> None:
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(num_classes=5, channels=3)).eval()
    pixels = torch.randint(0, 256, (4, 48, 48, 3), dtype=torch.uint8)
    floats = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(model(pixels), model(floats))
    torch.testing.assert_close(model(pixels)[:1], model(pixels[:1]), rtol=1e-4, atol=1e-5)
    features = model.features(pixels)
    assert features.shape == (4, 64)
    torch.testing.assert_close(model.head(features), model(pixels))
    assert torch.equal(model.predict(pixels), model(pixels).argmax(1))


def test_a_saved_classifier_comes_back_whole(tmp_path) -> None:
    data = Stripes(classes=3, channels=1, side=16, count=64)
    model = train_classifier(data.batches, images_per_epoch=64, num_classes=3, channels=1, size=16, epochs=1.0)
    save_classifier(model, tmp_path / "classifier.safetensors")
    again = load_classifier(tmp_path / "classifier.safetensors")
    assert again.config == model.config and not again.training
    torch.testing.assert_close(again(data.images), model(data.images), rtol=0, atol=0)


def test_another_file_is_no_classifier(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is no classifier"):
        load_classifier(tmp_path / "x.safetensors")


def test_what_cannot_be_trained_on_names_the_field() -> None:
    def batches(epoch: int) -> Iterator[dict[str, Tensor]]:
        yield {"images": torch.zeros(4, 16, 16, 1, dtype=torch.uint8), "labels": torch.tensor([0, 1, 2, 5])}

    settings = {"images_per_epoch": 4, "channels": 1, "size": 16}
    with pytest.raises(ValueError, match="labels 0 ... 5: data.num_classes=3"):
        train_classifier(batches, num_classes=3, **settings)
    with pytest.raises(ValueError, match="gave no batches"):
        train_classifier(lambda epoch: [], num_classes=3, **settings)
    with pytest.raises(ValueError, match="classifier takes 1"):
        Classifier(ClassifierConfig(num_classes=2, channels=1))(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="evaluate.classifier_size=20"):
        ClassifierConfig(num_classes=2, size=20)
    with pytest.raises(ValueError, match="no images"):
        accuracy(Classifier(ClassifierConfig(num_classes=2)).eval(), [])
