"""Ports on loopback for servers that go down and come back."""

import random
import socket
from pathlib import Path

HOST = "127.0.0.1"
TRIES = 200


def free_port() -> int:
    """A port nobody listens on, outside the range the kernel takes client ports from.

    Inside that range somebody's client may take the port while our server is down; and a client that keeps trying a dead port of that range on
    loopback ends up connected to itself, after which the server cannot bind.
    """
    for _ in range(TRIES):
        port = random.randrange(15_000, first_client_port())
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"No free port in {TRIES} tries")


def first_client_port() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768  # macOS starts higher
    return first if first > 16_000 else 32_768
