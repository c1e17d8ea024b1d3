"""A sampler in diffusers: the real library loads the folder, and draws the pictures that nvg draws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nvg
from pipelines import export_diffusers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # importing diffusers takes as long as many tests
FAST = "fashion-mnist-fast"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("diffusers") / "clothes"
    export_diffusers.main([FAST, str(target)])
    return target


@pytest.fixture(scope="module")
def pipe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    patch = pytest.MonkeyPatch()
    patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    yield DiffusionPipeline.from_pretrained(str(folder), custom_pipeline=str(folder), trust_remote_code=True)
    patch.undo()


@pytest.fixture(scope="module")
def sampler() -> Any:
    return nvg.load(FAST)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pictures_are_those_of_the_sampler(pipe: Any, sampler: Any) -> None:
    ours = sampler.generate(["Bag", "Coat"], seed=7)
    drawn = pipe(class_labels=["Bag", 4], generator=seeded(7))
    assert type(drawn).__name__ == "ImagePipelineOutput" and [image.mode for image in drawn.images] == ["L", "L"]
    assert np.array_equal(np.stack([np.asarray(image) for image in drawn.images]), ours[..., 0])
    assert np.array_equal(np.asarray(pipe("Bag", generator=[seeded(7)]).images[0]), ours[0, ..., 0])


def test_settings_reach_the_sampler(pipe: Any, sampler: Any) -> None:
    ours = sampler.generate([1, 2], seed=[3, 9], flow_steps=2, structure_guidance=1.5, content_guidance=1.5, top_p=0.9)
    (drawn,) = pipe(
        [1, 2],
        generator=[seeded(3), seeded(9)],
        num_inference_steps=2,
        guidance_scale=1.5,
        top_p=0.9,
        output_type="np",
        return_dict=False,
    )
    assert np.array_equal((drawn * 255).round().astype(np.uint8), ours)
    tensors = pipe([1, 2], generator=seeded(3), output_type="pt").images
    assert tensors.shape == (2, 1, 32, 32) and tensors.dtype == torch.float32


def test_a_callback_sees_every_stage(pipe: Any, sampler: Any) -> None:
    seen = []

    def look(pipeline: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
        assert pipeline is pipe and step == timestep
        seen.append({name: value.clone() for name, value in tensors.items()})

    names = ["canvas", "structure_map"]
    pipe("Bag", generator=seeded(1), callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    steps = list(sampler.stages(["Bag"], seed=1))
    assert len(seen) == len(steps) == 5
    for tensors, step in zip(seen, steps, strict=True):
        assert torch.equal(tensors["canvas"], step.canvas) and torch.equal(tensors["structure_map"], step.structure_map)


def test_without_a_generator_each_call_draws_something_else(pipe: Any) -> None:
    first, second = (pipe("Bag", output_type="np").images for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"class_labels": "Bga"}, "no class 'Bga'; the classes are"),
        ({"class_labels": 1, "output_type": "latent"}, "output_type='latent': choose one of pil, np, pt"),
        ({"class_labels": 1, "callback_on_step_end_tensor_inputs": ["latents"]}, "no 'latents'; there are canvas"),
        ({"class_labels": 1, "guidance_scale": 9}, "structure_guidance=9: this model has learned guidance"),
        ({"class_labels": 1, "eta": 0.1}, "no sampler setting 'eta'"),
    ],
)
def test_wrong_arguments_are_named(pipe: Any, words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**words)


def test_the_folder_states_its_licence_and_holds_no_path_of_this_machine(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "license: apache-2.0" in text and "library_name: diffusers" in text
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["settings"]["data"]["train"] == "unknown"
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".md", ".py", ".safetensors"}


def test_an_existing_folder_is_left_alone(folder: Path) -> None:
    with pytest.raises(SystemExit, match=f"^error: {folder} is there already: give another folder, or remove it$"):
        export_diffusers.main([FAST, str(folder)])


def test_a_fresh_process_loads_it_by_diffusers_alone(folder: Path, tmp_path: Path, sampler: Any) -> None:
    code = (
        "import sys, numpy, torch; from diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)\n"
        "images = pipe(class_labels=['Bag'], generator=torch.Generator().manual_seed(3), output_type='np').images\n"
        "numpy.save(sys.argv[2], images)"
    )
    drawn = tmp_path / "drawn.npy"
    subprocess.run([sys.executable, "-c", code, str(folder), str(drawn)], check=True)
    ours = sampler.generate(["Bag"], seed=3)
    assert np.array_equal((np.load(drawn) * 255).round().astype(np.uint8), ours)
