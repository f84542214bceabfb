"""Entry point of a model image: `python serve.py serve` answers on port 8080 or the unix socket DYNABENCH_SOCKET."""

from __future__ import annotations

import os
import runpy
import site
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def arrange_import_path(dynabench: Path, *, shims: list[str]) -> None:
    """The shims first, then the model's files and packages, Python, and last what the server itself needs."""
    packages = str(dynabench / "packages")
    first = [*(str(HERE / name) for name in shims), str(dynabench / "model"), packages]
    others = [entry for entry in sys.path if entry not in {str(HERE), packages}]
    sys.path[:] = [*first, *others, str(dynabench / "lib"), str(HERE)]
    site.addsitedir(packages)  # reads the .pth files that some packages need


def main() -> None:
    """Serve the image's model until SIGTERM."""
    if sys.argv[1:] != ["serve"]:
        sys.exit("usage: serve.py serve")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the handler prints is log
    sys.stdout.reconfigure(line_buffering=True)
    dynabench = Path(os.environ.get("DYNABENCH_ROOT", "/")) / "opt/dynabench"
    if os.environ.get("DYNABENCH_MODEL_SERVER") == "torchserve":
        sys.path[:0] = [str(dynabench / "lib")]  # the user's packages are for TorchServe's worker alone
        runpy.run_module("dynabench_runtime.torchserve", run_name="__main__")
    else:
        arrange_import_path(dynabench, shims=["shims", "ts_shim"])
        runpy.run_module("dynabench_runtime.asgi", run_name="__main__")


if __name__ == "__main__":
    main()
