"""The weights that the method's authors published, as a sampler of this project (docs/guides/published_weights.md)."""
