"""All of this folder computes on one thread."""

from tests.support.threads import one_thread

__all__ = ["one_thread"]
