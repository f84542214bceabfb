"""Entry point of a model image: `python serve.py serve` answers on port 8080 or the unix socket DYNABENCH_SOCKET."""

from __future__ import annotations

import os
import runpy
import site
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def arrange_import_path(dynabench: Path) -> None:
    """Our shims first, then the user's packages, Python, and last what the server itself needs."""
    packages = str(dynabench / "packages")
    others = [entry for entry in sys.path if entry != str(HERE)]
    sys.path[:] = [str(HERE / "shims"), packages, *others, str(dynabench / "lib"), str(HERE)]
    site.addsitedir(packages)  # reads the .pth files that some packages need


def main() -> None:
    """Serve the image's model until SIGTERM."""
    if sys.argv[1:] != ["serve"]:
        sys.exit("usage: serve.py serve")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the handler prints is log
    sys.stdout.reconfigure(line_buffering=True)
    arrange_import_path(Path(os.environ.get("DYNABENCH_ROOT", "/")) / "opt/dynabench")
    runpy.run_module("dynabench_runtime", run_name="__main__")


if __name__ == "__main__":
    main()
