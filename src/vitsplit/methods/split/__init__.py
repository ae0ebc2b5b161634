"""ViT-Split: from the taps of a frozen backbone to one fused map (Section 3.2, equations 1 to 5)."""
