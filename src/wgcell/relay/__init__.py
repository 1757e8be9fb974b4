"""A frame's way out, and a reply's way in.

``loop`` reads QEMU's bytes into the buffer of ``framing``, which finds the frames; ``classify``
compares every header byte with the one ``link`` there is, and what remains is a UDP payload;
``session`` asks whether it is a WireGuard message in step with the handshakes it has watched;
``runs`` asks the same of many at once; ``relay`` turns the ``verdict`` into commands, and
``datagrams`` sends the *payload* on the connected UDP socket. No header byte of the guest's reaches
the wire. A datagram of the endpoint's walks back: ``session``, then ``link`` puts headers of our
own before it, then the NIC's socket. ``evidence`` writes what was refused as pcapng.
"""
