"""Benchmarks of ``vitsplit bench``."""
