"""A name that has another address after an outage: headless services, ECS, a changed record."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.renamed import OLD, entry
from tests.processes import REPOSITORY

#: gRPC asks twice a second; what it did by itself was 30 s.
LATE = 5.0


@pytest.fixture
def privately(tmp_path: Path) -> list[str]:
    """A command that runs another one with a hosts file of its own, which nobody else sees.

    In a mount namespace of the child's: root has one, and where the system lets him anybody.
    """
    if shutil.which("unshare") is None:
        pytest.skip("only Linux's unshare gives a process a hosts file of its own")
    hosts = tmp_path / "hosts"
    hosts.write_text(entry(OLD))
    mount = ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    refusals = []
    for unshare in (["unshare", "-m"], ["unshare", "-rm"]):
        tried = subprocess.run([*unshare, *mount, "true"], capture_output=True, text=True)
        if tried.returncode == 0:
            return [*unshare, *mount]
        refusals.append(tried.stderr.strip())
    pytest.skip(f"no mount namespace to be had: {'; '.join(refusals)}")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("resolver", ["ares", "native"])
@pytest.mark.parametrize("channel", ["fast", "slow"])
def test_a_changed_address_is_found(
    privately: list[str], tmp_path: Path, resolver: str, channel: str
) -> None:
    """Within 5 s, early in an outage and late in it, by both flavours, by each resolver of gRPC's.

    A channel asks for the address when it is opened, and a slow one, of an outage older than
    ``backoff_patience``, asked again after 30 s.
    """
    patience = 60.0 if channel == "fast" else 0.5
    program = [sys.executable, "-m", "tests.integration.renamed"]
    arguments = [str(tmp_path / "hosts"), "1.3", str(patience)]
    done = subprocess.run(
        [*privately, *program, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "GRPC_DNS_RESOLVER": resolver},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    late = json.loads(done.stdout)
    assert max(late.values()) < LATE, late
