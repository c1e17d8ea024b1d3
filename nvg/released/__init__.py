"""The weights that the method's authors published, as a sampler of this project (docs/published_weights.md)."""
