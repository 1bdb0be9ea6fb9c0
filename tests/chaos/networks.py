"""Machines of a network of their own: namespaces joined by a switch whose ports lose what they are
sent. It takes root; the network of this machine is left alone."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

DISABLED, FORWARDING = "0", "3"
"""States of a port of Linux' bridge."""


class Network:
    """Hosts by number, from 1 on, each with an address of its own."""

    def __init__(self, num_hosts: int) -> None:
        self._hosts = range(1, num_hosts + 1)
        self._prefix = f"thaw-{os.getpid()}"
        self._switch = f"{self._prefix}-switch"

    def __enter__(self) -> "Network":
        switch = self._switch
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "addr", "add", f"{self.address(254)}/24", "dev", "switch")
        _ip("-n", switch, "link", "set", "switch", "up")
        for host in self._hosts:
            name, port = self._name(host), self._port(host)
            _ip("netns", "add", name)
            peer = ("peer", "name", "eth0", "netns", name)
            _ip("-n", switch, "link", "add", port, "type", "veth", *peer)
            _ip("-n", switch, "link", "set", port, "master", "switch", "up")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            # Ray asks the way to the internet for the address of its machine.
            _ip("-n", name, "route", "add", "default", "via", self.address(254))
        return self

    def __exit__(self, *error: object) -> None:
        for name in (*map(self._name, self._hosts), self._switch):
            _ip("netns", "del", name)

    def address(self, host: int) -> str:
        return f"10.77.0.{host}"

    def within(self, host: int) -> tuple[str, ...]:
        """The words before a command that runs on a host."""
        return ("ip", "netns", "exec", self._name(host))

    def host_of(self, process: int) -> int:
        """The host that a process is on."""
        identify = ["ip", "netns", "identify", str(process)]
        name = subprocess.run(identify, check=True, capture_output=True, text=True).stdout.strip()
        return int(name.removeprefix(f"{self._prefix}-"))

    @contextmanager
    def cut_off(self, host: int) -> Iterator[None]:
        """Lose all that a host sends or is sent."""
        self._set_port(host, "state", DISABLED)
        yield
        self._set_port(host, "state", FORWARDING)

    @contextmanager
    def parted(self, one: int, other: int) -> Iterator[None]:
        """Lose what two hosts send each other; both reach the others."""
        for host in (one, other):
            self._set_port(host, "isolated", "on")
        yield
        for host in (one, other):
            self._set_port(host, "isolated", "off")

    def _set_port(self, host: int, name: str, value: str) -> None:
        link = ("link", "set", "dev", self._port(host), name, value)
        subprocess.run(["bridge", "-n", self._switch, *link], check=True)

    def _name(self, host: int) -> str:
        return f"{self._prefix}-{host}"

    def _port(self, host: int) -> str:
        return f"port{host}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
