"""``python -m vitsplit``, and so ``torchrun -m vitsplit``: the command line."""

from __future__ import annotations

import sys

from vitsplit.cli.main import main

sys.exit(main())
