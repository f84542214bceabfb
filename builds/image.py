"""From an archive to a complete image, step by step: code, handler, weights and packages, tried on one example."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from django.conf import settings

from builds import mar, offers, requirements
from builds.model_client import ModelError
from builds.one_example import ask, checked
from builds.sandboxes.folder import is_running
from builds.sandboxes.policy import INSTALL, Command, LimitExceeded, Log, Sandbox, SandboxPolicy
from builds.steps import Recorder, StepFailed
from submissions import archives
from tasks_catalog.models import Task

RUNTIME = Path(__file__).parent / "runtime"
PROJECT = Path("home/model-server/code")


@dataclass(frozen=True, slots=True)
class Image:
    digest: str
    mar_sha256: str
    mar_archive: Path


@dataclass(frozen=True, slots=True)
class ImageBuilder:
    """Makes the image of one archive in a sandbox; `record` keeps what happens.

    `offers` are the packages, by name and version, that the sandbox's own image brings to every model.
    """

    sandbox: Sandbox
    record: Recorder
    task: Task
    model_name: str
    name: str
    offers: Mapping[str, str] = field(default_factory=dict)

    def build(self, archive: Path, workdir: Path) -> Image:
        """The image, packed and tried; raises StepFailed with what the model's owner should change."""
        stage = workdir / "stage"
        setup = self._unpack(archive, stage)
        mar_sha256, mar_archive = self._pack_model(setup, stage, workdir)
        self._install(setup, stage, workdir)
        with self.record.step("pack image"):
            digest = self.sandbox.pack(stage, name=self.name, labels={"dynabench.archive": mar_sha256})
        try:
            self._smoke(digest)
        except BaseException:
            self.sandbox.remove(digest)
            raise
        return Image(digest, mar_sha256, mar_archive)

    def _unpack(self, archive: Path, stage: Path) -> dict[str, Any]:
        with self.record.step("unpack") as log:
            project = stage / PROJECT
            project.parent.mkdir(parents=True)
            try:
                manifest = archives.extract_apart(
                    archive, project, model_name=self.model_name, task_code=self.task.code
                )
            except archives.ArchiveError as error:
                raise StepFailed(error.code, str(error)) from error
            config = {"config": yaml.safe_load(self.task.config_yaml), "task": self.task.code}
            (project / f"{self.task.code}.json").write_text(json.dumps(config))
            log(f"{manifest.files} files, {manifest.size} bytes\n".encode())
        return manifest.setup_config

    def _pack_model(self, setup: dict[str, Any], stage: Path, workdir: Path) -> tuple[str, Path]:
        """Checkpoint, handler and model files go into the .mar, flattened; the first two leave the project."""
        project, name = stage / PROJECT, f"archive.{self.name}"
        with self.record.step("pack model") as log:
            mar.lay_out(project, setup, name=name, folder=stage / "opt/dynabench/model")
            sha256 = mar.write_mar(stage / "opt/dynabench/model", workdir / f"{name}.mar")
            mar.write_archive(workdir / f"{name}.mar", workdir / f"{name}.tar.gz")
            (workdir / f"{name}.mar").unlink()
            (project / setup["checkpoint"]).unlink()
            (project / setup["handler"]).unlink()
            shutil.copytree(RUNTIME, stage / "opt/dynabench/runtime", ignore=shutil.ignore_patterns("__pycache__"))
            image = {
                "task_code": self.task.code,
                "model_name": self.model_name,
                "archive_sha256": sha256,
                "torchserve_config": self.task.build_config.torchserve_config,
            }
            (stage / "opt/dynabench/image.json").write_text(json.dumps(image))
            log(f"{name}.mar sha256 {sha256}\n".encode())
        return sha256, workdir / f"{name}.tar.gz"

    def _install(self, setup: dict[str, Any], stage: Path, workdir: Path) -> None:
        project, wheels = stage / PROJECT, workdir / "wheels"
        (stage / "opt/dynabench/packages").mkdir(parents=True, exist_ok=True)
        with self.record.step("fetch requirements", "pip download") as log:
            shutil.copytree(requirements.runtime_library(log), stage / "opt/dynabench/lib")
            wants_packages = self._fetch(setup, project, wheels, log)
        commands = [requirements.INSTALL] if wants_packages else []
        commands += [requirements.SETUP] if setup["setup"] else []
        for argv in commands:
            self._run("install", requirements.installing(argv, stage, wheels))
        if commands:
            self._run("compile", requirements.installing(requirements.COMPILE, stage, wheels), may_fail=True)

    def _fetch(self, setup: dict[str, Any], project: Path, wheels: Path, log: Log) -> bool:
        """Download what the project asks for; whether it asks for anything besides its build tools."""
        try:
            text = (project / "requirements.txt").read_text() if setup["requirements"] else ""
            lines = offers.hold_against(requirements.check_lines(text), self.offers, log)
            tools = requirements.build_tools(project) if setup["setup"] else []
            if lines or tools:
                requirements.fetch(
                    [*lines, *tools],
                    wheels,
                    python=self.sandbox.python,
                    log=log,
                    name=self.name,
                    allow_sdists=self.task.build_config.allow_sdists,
                    options=offers.stand_in(self.offers, wheels),
                )
                log("".join(f"fetched {path.name}\n" for path in sorted(wheels.glob("*-*"))).encode())
        except requirements.RequirementsError as error:
            raise StepFailed("bad_requirements", str(error)) from error
        except UnicodeDecodeError as error:
            raise StepFailed("bad_requirements", "requirements.txt is not UTF-8 text.") from error
        return any(not line.is_ours for line in lines)

    def _run(self, step: str, command: Command, *, may_fail: bool = False) -> None:
        """One command in the sandbox is one step."""
        policy = replace(INSTALL, deadline=self.task.build_config.build_minutes * 60)
        with self.record.step(step, " ".join(command.argv)) as log:
            try:
                code = self.sandbox.run(command, policy=policy, log=log, name=self.name)
            except LimitExceeded as error:
                raise StepFailed("limit_exceeded", f"The installation was stopped. {error}") from error
            if code and not may_fail:
                raise StepFailed("install_failed", f"The command ended with exit code {code}.", exit_code=code)

    def _smoke(self, digest: str) -> None:
        """One made-up example through the finished image: what can't answer here can't answer anywhere."""
        example, config = self.task.format.sample_inputs(1)[0], self.task.build_config
        with self.record.step("try one example") as log:
            log(f"asked: {json.dumps(example)}\n".encode())
            policy = SandboxPolicy(memory_mb=config.memory_mb, deadline=config.deadline_seconds(1))
            try:
                with self.sandbox.serve(digest, policy=policy, name=self.name) as server:
                    try:
                        answer = ask(server, example, deadline=time.monotonic() + policy.deadline)
                    finally:
                        log(server.log_tail().encode())
                log(b"\nanswered: " + answer[:2000] + b"\n")
                checked(answer, example, self.task.format)
            except ModelError as error:
                raise StepFailed(error.code, error.detail) from error


@contextmanager
def new_workdir(job: str) -> Iterator[Path]:
    """A private directory for one job, on the disk of VAR."""
    parent = settings.VAR / "builds"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{job}.{os.getpid()}.", dir=parent, ignore_cleanup_errors=True) as name:
        yield Path(name)


def sweep_workdirs(live: Container[str]) -> list[str]:
    """Remove the directories of killed workers; the names of their jobs."""
    swept = []
    for path in (settings.VAR / "builds").glob("*.*.*"):
        job, pid, _ = path.name.split(".")
        if job not in live and not is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
            swept.append(job)
    return swept
