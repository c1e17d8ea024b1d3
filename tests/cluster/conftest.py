"""One Ray for all tests of this folder, started once, and what is made on it once."""

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
