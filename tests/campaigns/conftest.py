"""What the campaigns share with the tests on Ray."""

from tests.support.cluster import add_node, images, port, ray_cluster, tokenizer, tokens
from tests.support.network import network, ray_hosts
from tests.support.store import store

__all__ = ["add_node", "images", "network", "port", "ray_cluster", "ray_hosts", "store", "tokenizer", "tokens"]
