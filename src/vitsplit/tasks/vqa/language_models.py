"""Language models that vitsplit knows by name."""

from __future__ import annotations

from dataclasses import dataclass

SMOLLM2 = "smollm2-135m"


@dataclass(frozen=True)
class LanguageSpec:
    """One named language model.

    Attributes:
        width: Width of its embeddings, known without reading the model.
        license: License of the weights, as stated by the publisher on the hub.
        repository: The repository of the weights on the hub.
    """

    width: int
    license: str
    repository: str


LANGUAGE_MODELS = {
    SMOLLM2: LanguageSpec(576, "apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "lmsys/vicuna-7b-v1.5": LanguageSpec(4096, "llama2", "lmsys/vicuna-7b-v1.5"),
    "lmsys/vicuna-13b-v1.5": LanguageSpec(5120, "llama2", "lmsys/vicuna-13b-v1.5"),
}
"""The table, by short name or hub name. Only these are downloaded for a bundle without the user's naming them."""
