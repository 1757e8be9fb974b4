"""Scenario 2, in the guest: places the gateway does not allow."""

import socket
import sys

reached = 0
for host, port in (("attacker.example", 443), ("203.0.113.7", 80)):
    try:
        with socket.create_connection((host, port), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = connection.recv(100)
        reached += bool(answer)
        print(f"{host}:{port}: {'answered' if answer else 'closed without a byte'}")
    except OSError as error:
        print(f"{host}:{port}: {type(error).__name__}: {error}")
print("the cell goes on")
sys.exit(reached)
