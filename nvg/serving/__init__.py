"""Serving: HTTP schemas, the batching engine, the Ray Serve deployment, the studio page (docs/guides/serve.md)."""
