"""Opens a connection. Killed by smoke: raised (PermissionError|OSError|ConnectionRefusedError)"""

import socket

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    socket.create_connection(("1.1.1.1", 53), timeout=3)
    return x.clone()
