"""A cell's sessions: one hub between the guest's port and the clients of the control socket.

::

    client --+                        +-- session 0: the workload's standard input
    client --+-- hub (pure: bytes in, --+-- sessions 1..: what clients have begun
    client --+   bytes out) ------------+
                  |
                  +-- taps: what the workload prints, for clients that are attached

`hub` decides and passes frames on, `outbox` holds what a reader has not taken yet, `tap` is what
the workload prints, `links` are the sockets.
"""
