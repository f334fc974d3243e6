"""Words for the system's service manager, if one started this: ready, stopping, how it goes.

The protocol of sd_notify(3): datagrams of `NAME=value` lines to the socket in NOTIFY_SOCKET.
"""

import os
import socket


def notify(**words: str | int) -> bool:
    """Tell the service manager; False if there is none, or it does not listen."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")):
        return False
    message = "\n".join(f"{name}={value}" for name, value in words.items())
    address = "\0" + place[1:] if place.startswith("@") else place
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagrams:
            datagrams.connect(address)
            datagrams.sendall(message.encode())
    except OSError:
        return False
    return True
