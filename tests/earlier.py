"""Files of earlier versions: text files unchanged, and tensors as names and shapes that are filled by a rule.

The rule is exact arithmetic, so that every machine has the same bytes and hashes; see ``fixtures/README.md``.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).with_name("fixtures")
LISTED = ".tensors.json"
"""In place of ``.safetensors``: name to [dtype, shape] of every tensor, or to [dtype, shape, values] of small ones."""
LITERAL = 16
"""Tensors of at most so many numbers keep them: counters, the steps of AdamW, the gate's scores."""
TIME = 1_700_000_000
"""When all data files were last changed, as the runs' ``data.json`` has it."""
_POOL = np.random.RandomState(0).randint(-(2**15), 2**15, 65521) / 2**15


def filled(name: str, shape: list[int], salt: str) -> torch.Tensor:
    """Values of a tensor, in a range that suits the parameter of this name."""
    start = zlib.crc32(f"{salt}/{name}".encode()) % len(_POOL)
    unit = np.resize(np.roll(_POOL, -start), shape)
    if name.endswith("exp_avg_sq"):
        unit = (1 + unit / 2) * 1e-4
    elif name.endswith("exp_avg"):
        unit = unit * 1e-2
    elif name.endswith("running_var"):
        unit = 1 + unit / 2
    elif len(shape) == 3 and shape[0] == 1:  # position embeddings, large enough that patches differ
        pass
    elif len(shape) == 1:
        unit = 1 + unit / 4 if name.endswith(("weight", "gamma")) else unit / 8
    else:
        unit = unit * math.sqrt(3 / math.prod(shape[1:]))
    return torch.from_numpy(unit).float()


def list_tensors(root: Path) -> None:
    """Replaces every safetensors file under a folder by its list."""
    for file in root.rglob("*.safetensors"):
        rows = {}
        for name, tensor in sorted(load_file(file).items()):
            row: list[Any] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            rows[name] = row + [tensor.flatten().tolist()] * (tensor.numel() <= LITERAL)
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        file.with_suffix(LISTED).write_text(f"{{\n{lines}\n}}\n")
        file.unlink()


def fill_tensors(root: Path) -> None:
    """Replaces every list under a folder by the safetensors file that it lists."""
    for file in root.rglob(f"*{LISTED}"):
        salt, stem = file.parent.name, file.name.removesuffix(LISTED)
        state = {}
        for name, (dtype, shape, *values) in json.loads(file.read_text()).items():
            kind = getattr(torch, dtype)
            numbers = torch.tensor(values[0]).reshape(shape) if values else filled(name, shape, f"{salt}/{stem}")
            state[name] = numbers.to(kind).contiguous()
        save_file(state, file.with_name(f"{stem}.safetensors"), metadata={"format": "pt"})
        file.unlink()


def restored(name: str, to: Path) -> Path:
    """A copy of ``fixtures/NAME`` in a folder, with its tensors, and its files as old as those of the runs' data."""
    folder = to / name
    shutil.copytree(FIXTURES / name, folder)
    fill_tensors(folder)
    for file in folder.rglob("*"):
        os.utime(file, (TIME, TIME))
    return folder


def samples(file: Path) -> dict[str, list[float]]:
    """The mean and three values of every tensor of a file."""
    found = {}
    for name, tensor in sorted(load_file(file).items()):
        flat = tensor.double().flatten()
        chosen = flat[[0, len(flat) // 2, -1]]
        found[name] = [float(f"{number:.8g}") for number in (flat.mean(), *chosen)]
    return found


def run_command(words: Sequence[str]) -> tuple[int, str]:
    """The exit status of a command, run in this process, and what it printed, on lines that are not wrapped."""
    from vitsplit.cli.main import main

    text, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "110"
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            status = main(list(words))
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return status, text.getvalue()


def listed_flags(help_text: str) -> list[str]:
    """The flags that a help text has an entry for, of argparse or of tyro."""
    cells = [cell.strip() for line in help_text.splitlines() for cell in line.split("│")]
    heads = [cell.split("  ")[0] for cell in cells if cell.startswith("-")]
    return sorted({flag for head in heads for flag in re.findall(r"--[a-z][\w-]*", head)})
