"""The model's `setup_config.json`, as the dynalab CLI writes it: exactly seven keys, and paths that exist."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from submissions.tarballs import ArchiveError

CONFIG_MAX_BYTES = 1024**2
TYPES: dict[str, type] = {
    "task": str,
    "checkpoint": str,
    "handler": str,
    "requirements": bool,
    "setup": bool,
    "model_files": list,
    "exclude": list,
}
NEEDED_FILES = {"requirements": "requirements.txt", "setup": "setup.py"}


def config_name(model_name: str) -> str:
    """Where the CLI puts the file, relative to the project's root."""
    return f".dynalab/{model_name}/setup_config.json"


def check_setup_config(raw: bytes, *, name: str, files: Mapping[str, int], task_code: str) -> dict[str, Any]:
    """The seven settings with normalised paths; ArchiveError (member `name`) when one is wrong.

    `files` maps each file of the project to its size in bytes; `task_code` is the task of the upload.
    """
    config = _decode(raw, name)
    _check_shape(config, name)
    if config["task"] != task_code:
        rule = f"its task is {config['task']!r}, but the upload is for {task_code!r}. Run `dynalab-cli init --amend`."
        raise ArchiveError("archive_task_mismatch", rule, name)
    paths = {key: _file(config[key], key, files, name) for key in ("checkpoint", "handler")}
    _check_contents(paths, files, name)
    config |= paths | {"model_files": [_file(path, "model_files", files, name) for path in config["model_files"]]}
    _check_basenames([*paths.values(), *config["model_files"]], name)
    for key, needed in NEEDED_FILES.items():
        if config[key] and needed not in files:
            raise _invalid(f"`{key}` is true, but there is no {needed} at the root. Add it or say false.", name)
    return config


def _decode(raw: bytes, name: str) -> Any:
    try:
        config = json.loads(raw)
        json.dumps(config, ensure_ascii=False).encode()  # lone surrogates can't be stored
    except (ValueError, RecursionError) as error:
        raise _invalid(f"it is not valid JSON in UTF-8 ({error}).", name) from error
    return config


def _check_shape(config: Any, name: str) -> None:
    if not isinstance(config, dict) or config.keys() != TYPES.keys():
        raise _invalid(f"it must be an object with exactly the keys {', '.join(TYPES)}.", name)
    for key, wanted in TYPES.items():
        value = config[key]
        if type(value) is not wanted or (wanted is list and not all(isinstance(item, str) for item in value)):
            described = "a list of strings" if wanted is list else f"a {wanted.__name__}"
            raise _invalid(f"`{key}` must be {described}.", name)


def _file(path: str, key: str, files: Mapping[str, int], name: str) -> str:
    normal = posixpath.normpath(path)
    if normal not in files:
        rule = f"`{key}` names {path!r}, which is no file of the archive. Give its path relative to the project's root."
        raise ArchiveError("archive_setup_config_path", rule, name)
    return normal


def _check_contents(paths: Mapping[str, str], files: Mapping[str, int], name: str) -> None:
    for key, path in paths.items():
        if not files[path]:
            raise ArchiveError("archive_setup_config_path", f"`{key}` names {path!r}, which is empty.", name)
    if not paths["handler"].endswith(".py"):
        raise ArchiveError("archive_setup_config_path", f"`handler` must end with .py: {paths['handler']!r}.", name)


def _check_basenames(paths: list[str], name: str) -> None:
    """Checkpoint, handler and model files end up in one folder."""
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(posixpath.basename(path), path)
        if other is not path:
            rule = f"{other!r} and {path!r} have the same base name and would overwrite each other. Rename one."
            raise ArchiveError("archive_basename_clash", rule, name)


def _invalid(rule: str, name: str) -> ArchiveError:
    return ArchiveError("archive_setup_config_invalid", rule, name)
