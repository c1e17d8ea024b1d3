"""The adversarial loss on DINO features, and DINOv2 features: small random models saved as model hubs save them."""

import sys
from pathlib import Path

import pytest
import torch
import transformers

from nvg.frozen.convert import main
from nvg.frozen.dino import DinoBackbone
from nvg.frozen.dinov2 import DinoFeatures, load_dinov2
from nvg.training.discriminator import (
    Discriminator,
    discriminator_loss,
    generator_loss,
    load_discriminator,
)

SMALL = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3}


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, intermediate_size=96, image_size=64, patch_size=16)
    transformers.ViTModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, image_size=56, patch_size=14)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def discriminator(dino_folder: Path) -> Discriminator:
    torch.manual_seed(1)
    return load_discriminator(str(dino_folder))


@pytest.fixture(scope="module")
def features(dinov2_folder: Path) -> DinoFeatures:
    return load_dinov2(str(dinov2_folder))


# ---- discriminator ----


@pytest.mark.parametrize(
    ("channels", "size", "patches"), [(1, 32, 64), (3, 128, 64), (3, 136, 64), (3, 150, 81), (3, 256, 256)]
)
def test_one_logit_a_patch_and_tap_at_any_size(
    discriminator: Discriminator, channels: int, size: int, patches: int
) -> None:
    images = torch.rand(2, channels, size, size) * 2 - 1
    assert discriminator(images).shape == (2, 5 * patches)


def test_the_taps_see_imagenet_normalised_pixels_before_the_first_block_and_after_every_one(
    discriminator: Discriminator,
) -> None:
    images = torch.rand(1, 3, 128, 128) * 2 - 1
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images + 1) / 2 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    torch.testing.assert_close(discriminator.backbone.preprocess(images), pixels)
    collected: list[torch.Tensor] = []
    blocks = [module for module in discriminator.backbone.modules() if type(module).__name__ == "ViTLayer"]
    hooks = [blocks[0].register_forward_pre_hook(lambda _m, inputs: collected.append(inputs[0]))]
    hooks += [
        block.register_forward_hook(lambda _m, _i, out: collected.append(out if torch.is_tensor(out) else out[0]))
        for block in blocks
    ]
    taps = discriminator.backbone(images)
    for hook in hooks:
        hook.remove()
    assert len(collected) == len(taps) == 5
    for tap, tokens in zip(taps, collected, strict=True):
        torch.testing.assert_close(tap.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_a_logit_does_not_depend_on_batch_mates(discriminator: Discriminator) -> None:
    discriminator.eval()  # spectral normalisation moves its estimate in training mode
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(discriminator(images)[1:2], discriminator(images[1:2]), rtol=1e-4, atol=1e-5)
    discriminator.train()


def test_only_the_heads_learn_and_gradients_reach_the_images(discriminator: Discriminator) -> None:
    discriminator.train()
    assert not discriminator.backbone.training and not discriminator.backbone.vit.training
    images = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_()
    generator_loss(discriminator(images)).backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.backbone.parameters())
    assert all(parameter.grad is not None for parameter in discriminator.heads.parameters())
    discriminator.zero_grad()


@pytest.mark.slow
def test_the_heads_learn_to_tell_two_sets_of_images_apart(dino_folder: Path) -> None:
    torch.manual_seed(0)
    discriminator = load_discriminator(str(dino_folder))
    optimizer = torch.optim.Adam(discriminator.heads.parameters(), lr=2e-3)
    stripes = torch.linspace(0, 40, 32).sin().expand(4, 1, 32, 32)
    for _ in range(20):
        noise = torch.rand(4, 1, 32, 32) * 2 - 1
        loss = discriminator_loss(discriminator(stripes), discriminator(noise))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


def test_a_backbone_of_too_few_blocks_names_the_key() -> None:
    shallow = transformers.ViTConfig(**SMALL | {"num_hidden_layers": 3}, intermediate_size=96, patch_size=16)
    with pytest.raises(ValueError, match=r"discriminator_weights: a ViT of 3 blocks"):
        DinoBackbone(transformers.ViTModel(shallow))
    deep = transformers.ViTConfig(**SMALL | {"num_hidden_layers": 12}, intermediate_size=96, patch_size=16)
    assert DinoBackbone(transformers.ViTModel(deep)).blocks == [0, 3, 6, 9, 12]


# ---- DINOv2 features ----


@pytest.mark.parametrize(("channels", "size", "grid"), [(1, 32, 4), (3, 64, 8), (3, 256, 16)])
def test_one_feature_vector_a_latent_position(features: DinoFeatures, channels: int, size: int, grid: int) -> None:
    result = features(torch.rand(2, channels, size, size) * 2 - 1, grid)
    assert result.shape == (2, grid * grid, 48) and not result.requires_grad


def test_features_are_the_patch_tokens_in_raster_order(features: DinoFeatures) -> None:
    images = torch.rand(1, 3, 56, 56) * 2 - 1  # 14 * 4: no resize
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images + 1) / 2 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    with torch.no_grad():
        tokens = features.vit(pixels).last_hidden_state
    assert tokens.shape[1] == 17
    torch.testing.assert_close(features(images, 4), tokens[:, 1:])


def test_register_tokens_are_left_out(tmp_path: Path) -> None:
    config = transformers.Dinov2WithRegistersConfig(**SMALL, image_size=56, patch_size=14, num_register_tokens=4)
    transformers.Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    features = load_dinov2(str(tmp_path))
    images = torch.rand(1, 3, 56, 56) * 2 - 1
    with torch.no_grad():
        tokens = features.vit(((images + 1) / 2 - features.mean) / features.std).last_hidden_state
    torch.testing.assert_close(features(images, 4), tokens[:, 5:])


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 224), (3, 256)])
def test_an_image_has_one_class_token_of_224_pixels_a_side(features: DinoFeatures, channels: int, size: int) -> None:
    images = torch.rand(2, channels, size, size) * 2 - 1
    pixels = images.expand(2, 3, size, size)
    if size != 224:
        pixels = torch.nn.functional.interpolate(pixels, (224, 224), mode="bicubic", antialias=True).clamp(-1, 1)
    with torch.no_grad():
        output = features.vit(((pixels + 1) / 2 - features.mean) / features.std)
    torch.testing.assert_close(features.class_token(images), output.pooler_output)
    assert output.last_hidden_state.shape[1] == 1 + 16 * 16


def test_another_feature_width_names_the_key(dinov2_folder: Path) -> None:
    with pytest.raises(ValueError, match="repa.feature_width=768.*has 48"):
        load_dinov2(str(dinov2_folder), feature_width=768)


# ---- weights that are not there ----


@pytest.mark.parametrize(
    ("load", "key"),
    [(load_discriminator, "tokenizer_train.discriminator_weights="), (load_dinov2, "repa.weights=")],
)
def test_missing_weights_name_the_key_and_what_is_expected(load, key: str, tmp_path: Path, dino_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder") as error:
        load(str(tmp_path / "none"))
    assert key in str(error.value) and "config.json and model.safetensors" in str(error.value)
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_bytes((dino_folder / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors"):
        load(str(tmp_path))


def test_weights_of_another_model_are_refused_and_not_filled_with_noise(tmp_path: Path, dino_folder: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_bytes((dino_folder / "config.json").read_bytes())
    save_file({"something.else": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileNotFoundError, match="does not hold"):
        load_discriminator(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(FileNotFoundError, match="cannot be loaded"):
        load_discriminator(str(tmp_path))
    wider = transformers.ViTConfig(hidden_size=24, num_hidden_layers=4, num_attention_heads=3, patch_size=16)
    transformers.ViTModel(wider).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((dino_folder / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="cannot be loaded|does not hold"):
        load_discriminator(str(tmp_path))


def test_a_folder_may_be_a_url(dino_folder: Path) -> None:
    assert load_discriminator(dino_folder.as_uri()).backbone.width == 48
    with pytest.raises(FileNotFoundError, match="tokenizer_train.discriminator_weights="):
        load_discriminator(dino_folder.as_uri() + "-none")


def test_a_pickled_folder_is_refused_until_it_is_converted(tmp_path: Path, dino_folder: Path) -> None:
    from safetensors.torch import load_file

    (tmp_path / "config.json").write_bytes((dino_folder / "config.json").read_bytes())
    torch.save(load_file(dino_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="frozen.convert vit --folder"):
        load_discriminator(str(tmp_path))
    assert main(["vit", "--folder", str(tmp_path)]) == 0
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    first, second = (load_discriminator(str(folder)).backbone(images) for folder in (tmp_path, dino_folder))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_without_transformers_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, dino_folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"discriminator_weights=.*pip install 'nvg\[vit\]'"):
        load_discriminator(str(dino_folder))
