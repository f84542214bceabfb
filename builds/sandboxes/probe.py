"""What code in a sandbox finds: the self-test."""

from __future__ import annotations

import json
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from builds.sandboxes.policy import Command, LimitExceeded, Sandbox, SandboxPolicy, SandboxUnavailable

PROBE_POLICY = SandboxPolicy(memory_mb=512, pids=32, cpu_seconds=5, deadline=5.0, tmpfs_mb=16, disk_mb=16)
# The address is reserved for documentation (RFC 5737): with a route it times out, without one it is refused at once.
PROBE = """
import errno, json, os, platform, socket, sys
def is_refused(address, *codes):
    try:
        socket.create_connection(address, 0.5).close()
    except OSError as error:
        return not codes or error.errno in codes
refused = is_refused(("127.0.0.1", int(sys.argv[1]))) and is_refused(("192.0.2.1", 9), errno.ENETUNREACH)
print(json.dumps({"uid": os.getuid(), "version": platform.python_version(), "is_network_refused": bool(refused)}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    uid: int
    version: str
    is_network_refused: bool


def probe(sandbox: Sandbox) -> Finding:
    """What `python3 -c` sees in the sandbox; `SandboxUnavailable` with what it printed when it can't run."""
    output = bytearray()
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        stage = Path(folder) / "stage"
        for inside in ("opt/dynabench", "home/model-server"):
            (stage / inside).mkdir(parents=True)
        command = Command(["python3", "-c", PROBE, str(listener.getsockname()[1])], stage)
        try:
            code = sandbox.run(command, policy=PROBE_POLICY, log=output.extend, name=f"self-test-{sandbox.name}")
        except LimitExceeded as error:
            raise SandboxUnavailable(f"its self-test failed: {error}") from error
    text = output.decode(errors="replace").strip()
    if code:
        raise SandboxUnavailable(f"its self-test ended with exit code {code}: {text[-500:] or 'no output'}")
    return Finding(**json.loads(text.splitlines()[-1]))


def isolated(sandbox: Sandbox) -> Finding:
    """The probe's finding, once the network was seen to be refused."""
    finding = probe(sandbox)
    if not finding.is_network_refused:
        raise SandboxUnavailable("code in it can reach the network")
    return finding
