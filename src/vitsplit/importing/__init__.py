"""Import of checkpoints of the authors' release as bundles."""
