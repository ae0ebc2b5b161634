"""Generic layers, independent of the rest of the package."""
