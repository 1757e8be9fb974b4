"""Scenario 3, in the guest, as uid 0: everything root would try first. Prints one line a try."""

import ctypes
import os
import socket
import subprocess
import sys

SUCCEEDED = []


def attempt(what, act):
    try:
        act()
    except (OSError, subprocess.SubprocessError) as error:
        detail = str(getattr(error, "stderr", "") or error).strip().splitlines()
        print(f"failed inside  {what}: {detail[0] if detail else type(error).__name__}", flush=True)
    else:
        SUCCEEDED.append(what)
        print(f"SUCCEEDED      {what}", flush=True)


def connect(host, port, family=socket.AF_INET):
    def act():
        with socket.socket(family, socket.SOCK_STREAM) as stream:
            stream.settimeout(5)
            stream.connect((host, port))
            stream.sendall(b"hello\n")
            if not stream.recv(10):
                raise OSError("closed without a byte")

    return act


def raw_frame():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
        packet.bind(("eth0", 0))
        packet.send(b"\xff" * 12 + b"\x08\x00" + bytes(46))


def init_module():
    image = ctypes.create_string_buffer(64)
    if ctypes.CDLL(None, use_errno=True).syscall(175, image, 64, b""):  # init_module, x86-64
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run(*argv):
    def act():
        subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10)

    return act


print(f"uid {os.getuid()}")
attempt("connect to the LAN's router, 192.168.1.1:80", connect("192.168.1.1", 80))
attempt("connect to a LAN machine, 10.0.0.50:22", connect("10.0.0.50", 22))
attempt("connect to the link's far end, 192.168.64.1:22", connect("192.168.64.1", 22))
attempt("connect to the metadata service", connect("169.254.169.254", 80))
attempt("connect over IPv6", connect("2001:db8::1", 80, socket.AF_INET6))
attempt("a raw frame on eth0 (AF_PACKET)", raw_frame)
attempt("a raw IP socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
attempt("ip link add", run("ip", "link", "add", "dummy0", "type", "dummy"))
attempt("ip link set wg0 down", run("ip", "link", "set", "wg0", "down"))
attempt("nft flush ruleset", run("nft", "flush", "ruleset"))
attempt("move the default route", run("ip", "route", "replace", "default", "dev", "lo"))
attempt("enter the first namespace", run("nsenter", "-t", "1", "-n", "true"))
attempt("load a kernel module", init_module)
sys.exit(len(SUCCEEDED))
