"""The generators and the sampler (docs/method.md, generators and sampling). Imports torch alone."""

from nvg.generator.content import ContentGenerator
from nvg.generator.controls import Given
from nvg.generator.sampler import Sampler, Step
from nvg.generator.structure import StructureGenerator

__all__ = ["ContentGenerator", "Given", "Sampler", "Step", "StructureGenerator"]
