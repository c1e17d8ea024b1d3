"""The released system's weights in our modules: key tables, pure functions of a state dict (docs/method.md)."""
