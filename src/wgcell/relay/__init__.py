"""A frame's way out, and a reply's way in.

``loop`` reads bytes from QEMU's socket; ``framing`` cuts them into frames; ``classify`` compares
every header byte with the one ``link`` there is, and what remains is a UDP payload; ``session``
asks whether it is a WireGuard message in step with the handshakes it has watched; ``relay`` turns
the ``verdict`` into commands, and ``loop`` sends the *payload* on the connected UDP socket. No
header byte of the guest's reaches the wire. A datagram of the endpoint's walks back: ``session``,
then ``link`` wraps it in headers of our own, then the NIC's socket. ``evidence`` writes what was
refused as pcapng.
"""
