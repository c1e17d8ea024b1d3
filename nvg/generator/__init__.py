"""The generators and the sampler (docs/method.md, generators and sampling). Imports torch alone."""

from nvg.generator.content import ContentGenerator
from nvg.generator.controls import Given
from nvg.generator.sampler import Sampler, Step
from nvg.generator.seeds import image_seeds, nth_seed
from nvg.generator.structure import StructureGenerator

__all__ = ["ContentGenerator", "Given", "Sampler", "Step", "StructureGenerator", "image_seeds", "nth_seed"]
