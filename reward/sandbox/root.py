"""The root of a cage: what can be seen in there of the machine's files, in a mount namespace of its own."""

from __future__ import annotations

import os
import sysconfig
import tempfile

from reward.sandbox import kernel

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def readable() -> list[str]:
    """Folders that Python needs: its library and the system's."""
    own = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("LIBDIR")]
    found = [path for path in (*own, "/usr/lib", "/usr/lib64", "/lib", "/lib64") if path and os.path.isdir(path)]
    real = sorted({os.path.realpath(path) for path in found})
    return [path for path in real if not any(path.startswith(f"{other}/") for other in real)]


def put_root(size: int) -> str:
    """Make a root of the folders that Python needs, read-only, and a /tmp in memory, this process's own; returns that.

    Args:
        size: bytes of /tmp.

    Raises:
        OSError: what the kernel does not allow.
    """
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    new, hidden = tempfile.gettempdir(), kernel.MS_NOSUID | kernel.MS_NODEV
    links = {path: os.readlink(path) for path in ("/lib", "/lib64", "/usr/lib64") if os.path.islink(path)}
    places = [(path, os.open(path, os.O_PATH)) for path in readable()]
    devices = [(path, os.open(path, os.O_PATH)) for path in DEVICES]
    kernel.mount("cage", new, "tmpfs", hidden, "size=1m,mode=755")
    for path, place in places:
        os.makedirs(new + path, exist_ok=True)
        kernel.bind(f"/proc/self/fd/{place}", new + path)
    os.makedirs(f"{new}/dev", exist_ok=True)
    for path, place in devices:
        with open(new + path, "w"):
            pass
        kernel.bind(f"/proc/self/fd/{place}", new + path, read_only=False)
    for _, place in places + devices:
        os.close(place)
    for path, target in links.items():
        if not os.path.lexists(new + path):
            os.makedirs(os.path.dirname(new + path), exist_ok=True)
            os.symlink(target, new + path)
    os.makedirs(f"{new}/tmp", exist_ok=True)
    kernel.mount("tmp", f"{new}/tmp", "tmpfs", hidden, f"size={size},nr_inodes=4096,mode=1777")
    kernel.mount("none", new, None, kernel.MS_REMOUNT | kernel.MS_RDONLY | hidden)
    kernel.enter_root(new)
    return "/tmp"
