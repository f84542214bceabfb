"""The user's handler: find it in the model archive, initialise it, ask it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ts.context import Context

from dynabench_runtime.image import Ask, HandlerError, Image


def load_handler(image: Image, context: Context | None = None) -> Ask:
    """Import the handler and initialise it the way TorchServe does, whose own worker brings its `context`.

    Returns:
        A function from a request's body to what the handler returns for `[{"body": body}]`.

    Raises:
        HandlerError: the archive is another one, or it has no usable handler.
        BaseException: whatever the handler itself raises.
    """
    image.check_mounted_archives()
    os.chdir(image.model_dir)  # handlers open their files by bare name
    manifest = image.manifest
    file_name, _, function = manifest["model"]["handler"].partition(":")
    module = importlib.import_module(Path(file_name).stem)
    context = context or Context(image.model_name, str(image.model_dir), manifest, 1, first_gpu(), "")
    handle = initialise(module, function or "handle", context)
    return lambda body: handle([{"body": body}], context)


def initialise(module: ModuleType, function: str, context: Context) -> Callable[[Any, Context], Any]:
    """Initialise by a first call with None, or `initialize` of the one class; return what answers requests."""
    if hasattr(module, function):
        handle = getattr(module, function)
        handle(None, context)
        return handle
    service = handler_class(module)()
    service.initialize(context)
    return service.handle


def handler_class(module: ModuleType) -> type:
    """The one class of the module that has `initialize` and `handle`."""
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    found = [c for c in own if hasattr(c, "handle") and hasattr(c, "initialize")]
    if len(found) != 1:
        names = ", ".join(c.__name__ for c in found) or "none"
        raise HandlerError(
            f"{module.__name__}.py needs a function handle(data, context), "
            f"or exactly one class with initialize and handle (found: {names})."
        )
    return found[0]


def first_gpu() -> int | None:
    """0 if the handler has imported a torch that sees a GPU."""
    torch = sys.modules.get("torch")
    return 0 if torch and torch.cuda.is_available() else None
