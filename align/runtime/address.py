"""Which addresses may be asked over HTTP. No torch and no HTTP library: recipes are checked with it."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


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


def is_loopback(host: str) -> bool:
    """Whether what is said to `host` stays on this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, like 127.0.0.1.example
        return False
