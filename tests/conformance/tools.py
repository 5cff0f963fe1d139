"""Tools that others wrote, built at pinned versions into ``.tools/`` of the checkout.

``go.mod`` and ``go.sum`` beside this file pin each tool and all it is made of.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent / "tools"
FOLDER = Path(__file__).parents[2] / ".tools"
BUILD_TIMEOUT_S = 600


class Unavailable(Exception):
    """A tool cannot be had here; the text says why."""


@dataclass(frozen=True)
class Tool:
    """One Go program.

    Attributes:
        name: File name in ``.tools/``.
        module: Go module it comes from.
        package: Its command in the module.
        folder: Where the ``go.mod`` is that pins it.
    """

    name: str
    module: str
    package: str
    folder: Path = HERE

    @property
    def version(self) -> str:
        """Return the version that ``go.mod`` pins."""
        pins = (self.folder / "go.mod").read_text(encoding="utf-8")
        found = re.search(rf"^\s*{re.escape(self.module)} (\S+)", pins, re.MULTILINE)
        assert found is not None, f"{self.module} is not pinned"
        return found[1].removesuffix("+incompatible")

    def path(self) -> Path:
        """Return the program, built first where it is missing or another version.

        Raises:
            Unavailable: There is no Go here, or it cannot build the tool.
        """
        FOLDER.mkdir(exist_ok=True)
        program = FOLDER / self.name
        stamp = FOLDER / f"{self.name}.pins"
        pins = (self.folder / "go.sum").read_text(encoding="utf-8")
        with (FOLDER / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            built = program.exists() and stamp.exists()
            if not built or stamp.read_text(encoding="utf-8") != pins:
                self._build(program)
                stamp.write_text(pins, encoding="utf-8")
        return program

    def _build(self, program: Path) -> None:
        go = shutil.which("go")
        if go is None:
            raise Unavailable("there is no Go (https://go.dev) on the PATH")
        command = [go, "build", "-o", str(program), f"{self.module}/{self.package}"]
        try:
            built = subprocess.run(
                command,
                cwd=self.folder,
                check=False,
                capture_output=True,
                text=True,
                timeout=BUILD_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"the build took over {BUILD_TIMEOUT_S} s") from None
        if built.returncode:
            last = built.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise Unavailable(f"it does not build: {last[0]}")


INTEROP = Tool("interop_client", "google.golang.org/grpc", "interop/client")
H2SPEC = Tool("h2spec", "github.com/summerwind/h2spec", "cmd/h2spec")
GHZ = Tool("ghz", "github.com/bojand/ghz", "cmd/ghz", HERE / "ghz")
ALL = (INTEROP, H2SPEC, GHZ)


def main() -> None:
    """Build all tools; print one line for each."""
    for tool in ALL:
        try:
            outcome = f"ready: {tool.path().relative_to(FOLDER.parent)}"
        except Unavailable as reason:
            outcome = f"skipped: {reason}"
        print(f"{tool.name} {tool.version} {outcome}")  # noqa: T201 - its output


if __name__ == "__main__":
    main()
