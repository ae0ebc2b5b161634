"""vitsplit: one frozen vision foundation model, many dense-prediction models (ViT-Split, ICCV 2025)."""

__version__ = "0.1.0"
