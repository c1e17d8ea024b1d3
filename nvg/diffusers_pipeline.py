"""A sampler as a pipeline of diffusers: a folder that `DiffusionPipeline.from_pretrained` loads.

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pictures = pipe(class_labels=["Bag", 4], generator=torch.Generator().manual_seed(0)).images

The folder's own code is one import of this module, so it needs nvg installed, and runs nothing else. Pictures are those
of `nvg.load(...).generate(...)`, to the bit.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image

from nvg import config as configuration
from nvg.autoencoder import Autoencoder
from nvg.config import SEEDS, Config
from nvg.errors import ConfigError
from nvg.generator import ContentGenerator, Sampler, StructureGenerator

CODE = '''"""The pipeline of this folder. It needs the package: pip install nvg"""

from nvg.diffusers_pipeline import NvgPipeline

__all__ = ["NvgPipeline"]
'''
# The sections of a configuration that build a sampler.
SECTIONS = ("name", "output", "data", "tokenizer", "content", "structure", "sampler")
OUTPUT_TYPES = ("pil", "np", "pt")
TENSORS = ("canvas", "structure_map")  # that a callback may ask for


class NvgModel(ModelMixin, ConfigMixin):
    """The three networks of a sampler as one module, with what builds them as its config.json."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, settings: dict[str, Any], class_names: list[str], knows_no_class: bool = True) -> None:
        """settings: the SECTIONS of a configuration. knows_no_class: as of `Sampler`."""
        super().__init__()
        config = configuration.from_dict(settings, where="config.json")
        self.tokenizer = Autoencoder(config.tokenizer)
        self.content = ContentGenerator(config.content)
        self.structure = StructureGenerator(config.structure)

    def sampler(self) -> Sampler:
        """The sampler on these weights, where they are now. Raises ValueError for weights that are not float32."""
        if self.dtype != torch.float32:
            raise ValueError(f"torch_dtype={self.dtype}: the sampler computes in torch.float32: leave torch_dtype out")
        config = configuration.from_dict(dict(self.config["settings"]), where="config.json")
        names, known = self.config["class_names"], self.config["knows_no_class"]
        networks = (self.tokenizer, self.content, self.structure)
        return Sampler(*networks, config.sampler, names, knows_no_class=known)


class NvgPipeline(DiffusionPipeline):
    """Draws images of classes."""

    def __init__(self, model: NvgModel) -> None:
        super().__init__()
        self.register_modules(model=model)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: str | int | Sequence[str | int],
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("canvas",),
        **settings: Any,
    ) -> Any:
        """Draw one image per class.

        class_labels: N names or indices, or one. guidance_scale: of structure and content; num_inference_steps: of the
        structure's flow, at each stage; settings: fields of SamplerConfig. What is not given is as the sampler has it.
        generator: the seed of one counts (`initial_seed`), image j has seed + j; or one generator per image.
        output_type: "pil", "np" (float N, H, W, C in [0, 1]) or "pt" (float N, C, H, W in [0, 1]).
        callback_on_step_end(pipe, step, timestep, tensors) is called after each of the K + 1 stages, step = timestep =
        the stage. tensors: those of "canvas" (N, L, e) and "structure_map" (N, h, w) that
        callback_on_step_end_tensor_inputs names, to look at; what it returns is not read.

        Raises ValueError for an unknown class, setting, output type or tensor.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        for name in callback_on_step_end_tensor_inputs:
            if name not in TENSORS:
                raise ValueError(f"callback_on_step_end_tensor_inputs: no {name!r}; there are {', '.join(TENSORS)}")
        labels = [class_labels] if isinstance(class_labels, str | int) else list(class_labels)
        if guidance_scale is not None:
            settings = {"structure_guidance": guidance_scale, "content_guidance": guidance_scale} | settings
        if num_inference_steps is not None:
            settings = {"flow_steps": num_inference_steps} | settings
        for step in self.model.sampler().stages(labels, seed=seeds_of(generator), **settings):
            if callback_on_step_end is not None:
                tensors = {name: getattr(step, name) for name in callback_on_step_end_tensor_inputs}
                callback_on_step_end(self, step.stage, step.stage, tensors)
        pictures = converted(step.preview, output_type)
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)


def seeds_of(generator: torch.Generator | Sequence[torch.Generator] | None) -> int | list[int]:
    """The seeds of diffusers' random generators; a random one where there is none."""
    if generator is None:
        return secrets.randbelow(int(SEEDS.most or 0) + 1)
    if isinstance(generator, torch.Generator):
        return generator.initial_seed()
    return [one.initial_seed() for one in generator]


def converted(images: np.ndarray, output_type: str) -> Any:
    """Images, uint8 (N, H, W, C), as diffusers returns them."""
    if output_type == "pil":
        return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in images]
    values = images.astype(np.float32) / 255
    return values if output_type == "np" else torch.from_numpy(values).permute(0, 3, 1, 2)


def export(sampler: Sampler, config: Config, folder: str | Path) -> None:
    """Write the folder of a sampler and its `model_config`. Raises ConfigError where the folder is there already."""
    if Path(folder).exists():
        raise ConfigError(f"{folder} is there already: give another folder, or remove it")
    config.content.repa_block = None  # its projection is not exported
    whole = dataclasses.asdict(config)
    plain = {name: whole[name] for name in SECTIONS}
    plain["sampler"] = dataclasses.asdict(sampler.settings)
    plain["data"] = {**plain["data"], "train": "unknown", "test": None}  # no path of the machine that trained
    plain["output"] = "unknown"
    model = NvgModel(settings=plain, class_names=sampler.class_names, knows_no_class=sampler.knows_no_class)
    for name in ("tokenizer", "content", "structure"):
        getattr(model, name).load_state_dict(getattr(sampler, name).state_dict())
    NvgPipeline(model.eval()).save_pretrained(str(folder))
    (Path(folder) / "pipeline.py").write_text(CODE)
