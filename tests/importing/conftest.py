import pytest
import release_models


@pytest.fixture
def tiny(monkeypatch):
    """Backbones of the catalog are opened in the size of ``release_models.Dino``."""
    monkeypatch.setattr("vitsplit.backbone.weights.build_model", release_models.build_tiny)
