"""How fast things are, measured side by side: what ``vitsplit bench`` runs."""
