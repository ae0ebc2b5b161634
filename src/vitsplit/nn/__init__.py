"""Layers that know nothing of this project."""
