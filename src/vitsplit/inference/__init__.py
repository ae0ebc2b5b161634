"""Using bundles: from images to predictions."""
