"""Addresses: which may be asked over HTTP, and listening at one. No torch and no HTTP library: recipes are checked with
it."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from align.runtime.errors import AlignError

BACKLOG = 2048  # connections that may wait to be accepted


class AddressInUseError(AlignError, OSError):
    """An address at which nothing can listen."""


def url_problem(url: str, insecure: bool = False) -> str | None:
    """What keeps an address from being used for an endpoint, or None."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:  # its words quote the address, with a password maybe
        return "the address is not a URL, its host or port cannot be read"
    if parts.scheme not in ("http", "https") or not host:
        return "the address must begin with https:// (or http:// for this machine) and name a host"
    if parts.username is not None or parts.password is not None:
        return "the address holds a user name or password; put a key into an environment variable (api_key_env)"
    if parts.scheme == "http" and not insecure and not is_loopback(host):
        return f"plain http to {host} would show prompts, replies and key to the network; use https://, or insecure"
    return None


def server_problem(url: str) -> str | None:
    """The same of an address that a server of our own may have, a unix socket too."""
    problem = None if url.startswith("unix:///") else url_problem(url)
    return problem and problem.replace("use https://, or insecure", "use https://, or a tunnel to this machine")


def is_loopback(host: str) -> bool:
    """Whether what is said to `host` stays on this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, like 127.0.0.1.example
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; with port 0 at one that is free.

    Raises:
        AddressInUseError: nothing can listen there.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        told = f"{host}:{port} cannot be listened on ({why}): choose another --port or --host"
        raise AddressInUseError(told) from error


def http_url(host: str, port: int) -> str:
    """`http://host:port`."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_key(text: str) -> bool:
    """Whether a header can hold it as a key: printable ASCII without a space."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
