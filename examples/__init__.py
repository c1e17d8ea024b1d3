"""Short scripts, one for each guide that needs no cluster, and a notebook (examples/README.md)."""
