"""Ports for servers that measurements and tests start on this machine."""

import socket


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody listens on. Another program may take one before it is used."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
