"""The machine that a cell runs in, behind a Protocol.

``spec`` describes a machine, ``machine`` says what a running one can be asked, ``backends`` names
the implementations. ``qemu`` is the only one. ``sandbox`` closes any such process in: a jail and a
control group. ``kill_switch`` lets the kernel kill a machine without the supervisor.

Nothing here knows what the machine's network card is connected to: a machine is given a socket.
"""
