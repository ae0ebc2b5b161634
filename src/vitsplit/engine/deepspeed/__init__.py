"""Training with DeepSpeed (ZeRO stages 2 and 3), an optional extra: ``pip install 'vitsplit[deepspeed]'``."""
