"""Ports for servers that measurements and tests start on this machine: what the product takes for its own."""

from pipelines.serve import free_ports

__all__ = ["free_ports"]
