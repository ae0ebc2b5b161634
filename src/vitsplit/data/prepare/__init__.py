"""Conversion of public data sets to the package's folder layout."""
