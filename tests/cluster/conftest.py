"""One Ray for all tests of this folder, started once, and what is made on it once."""

from tests.support.cluster import add_node, address, deploy, images, port, ray_cluster, tokenizer, tokens

__all__ = ["add_node", "address", "deploy", "images", "port", "ray_cluster", "tokenizer", "tokens"]
