"""Visual question answering: the fused map becomes the visual tokens of a language model."""
