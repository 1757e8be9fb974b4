"""Scenario 4, in a compromised guest: one frame to 192.168.1.1, straight out of eth0."""

import socket
import struct
import time

time.sleep(1)  # the cell is running and watched by now; a real intruder picks the moment too


def checksum(header):
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


payload = struct.pack(">BBHHH", 8, 0, 0xF7FF, 0, 0)  # an ICMP echo request
source, target = socket.inet_aton("192.168.64.2"), socket.inet_aton("192.168.1.1")
header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 1, 0, source, target)
header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
ethernet = bytes.fromhex("027767000001 027767000002 0800")

with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
    packet.bind(("eth0", 0))
    print("sending one frame to 192.168.1.1 on eth0", flush=True)
    packet.send(ethernet + header + payload)
time.sleep(60)
print("STILL ALIVE a minute later", flush=True)
