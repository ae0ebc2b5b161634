"""Visual question answering: the fused map provides the visual tokens of a language model."""
