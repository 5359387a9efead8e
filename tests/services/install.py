"""Install what the tests' servers need from the distribution, where that may be done: as root on Debian and Ubuntu.

    python -m tests.services.install

CI runs it before the tests, `make services` before it starts anything. Elsewhere it says what is missing and changes nothing. The packages'
own services are not started: our servers are our own processes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services import discovery, pooler

POLICY = Path("/usr/sbin/policy-rc.d")  # Debian asks this file whether a package may start its service; 101: it may not
LIMIT_S = 600


def missing() -> dict[str, str]:
    """Packages and why they are needed."""
    found = {}
    if reason := discovery.system().reason:
        found["postgresql"] = reason
    if reason := pooler.missing():
        found["pgbouncer"] = reason
    return found


def install() -> None:
    wanted = missing()
    if not wanted:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        for reason in wanted.values():
            print(f"missing: {reason}", file=sys.stderr)
        return
    print(f"Installing {' '.join(wanted)} …", flush=True)
    with services_stay_down():
        # Lists that are merely old are good enough; none at all, or a file that has left the archive, calls for new ones.
        if not apt("install", *wanted):
            apt("update")
            apt("install", *wanted)
    discovery.servers.cache_clear()
    for reason in missing().values():
        print(f"still missing: {reason}", file=sys.stderr)


@contextmanager
def services_stay_down() -> Iterator[None]:
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def apt(*arguments: str) -> bool:
    command = ["apt-get", "--yes", "--quiet", "--quiet", "--no-install-recommends", "--option=Dpkg::Use-Pty=0", *arguments]
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, check=False, timeout=LIMIT_S).returncode == 0


if __name__ == "__main__":
    install()
