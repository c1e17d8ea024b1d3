"""One Ray for all tests of this folder, started once, and what is made on it once."""

import os

from tests.support.cluster import add_node, address, deploy, images, port, ray_cluster, tokenizer, tokens
from tests.support.network import network, ray_hosts
from tests.support.store import store

__all__ = [
    "add_node",
    "address",
    "deploy",
    "images",
    "network",
    "port",
    "ray_cluster",
    "ray_hosts",
    "store",
    "tokenizer",
    "tokens",
]

# Ray gives way to all other processes (niceness 15), and would wait while the tests beside these take every core.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # they take a process of every Ray
