"""A frame's way out, and a reply's way in.

``loop`` reads QEMU's bytes into the buffer of ``framing``, which finds the frames. ``classify``
compares every header byte with the one ``link`` there is; the rest is a UDP payload. ``session``
checks that it is a WireGuard message in step with the handshakes that it has watched, and ``runs``
checks many at once. ``relay`` makes commands of the ``verdict``, and ``datagrams`` sends the
*payload* on the connected UDP socket. No header byte of the guest reaches the wire. A datagram from
the endpoint goes the other way: ``session``, then ``link``, which puts new headers before it, then
the NIC's socket. ``evidence`` writes refused frames as pcapng.
"""
