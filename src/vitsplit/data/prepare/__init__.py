"""Public data sets in their published files, turned into the package's folder layout."""
