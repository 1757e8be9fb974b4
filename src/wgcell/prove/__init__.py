"""The leak battery: what a hostile guest tries, watched from outside.

A claim of isolation is worth what its test can catch. So each case here is played twice. Once
against the wall: nothing may leave. Once with the wall down, the *control*: the same bytes must be
seen. A case whose control was not seen is *not proven*, never passed.

::

    battery, bypass   the cases: what the guest does, and whether that must kill, drop or pass
    packets           frames with one defect each
    testbed           a host's network namespace, a cable, and a LAN of live decoys at its end,
                      boringtun as the endpoint among them; captures on every interface of both,
                      which know nothing of the relay; and the control, a relay without a wall
    quick             frames into the relay's own process, over the NIC's socket, no VM
    cells, player     the same battery from within VMs, each wall alone
    frames            a user's own frames, from a pcap file
    verdict           what an observation proves (pure); the capture decides, not the relay
    run, report       which cases are played, and the table, JSON, JUnit and HTML

Every frame has one defect and is otherwise what would pass, payload included. So a relay in which
one check is missing lets it out, and the capture names the case.

The quick form starts the relay as the supervisor does, through `wgcell.cell.children.RelayProcess`,
a fresh one a case, and makes a real handshake first: the indices a case abuses are live. In a VM
the guest's init is ours or hostile, its walls are up or down, and the relay is real or a
pass-through; the four together show each wall holding alone (see `cells`).

Where network namespaces can't be made (neither root nor unprivileged user namespaces), the oracle
stands at the relay's only socket, in this process, and the report says what it can't see then.

Frames are built with `wgcell.wire` and not with scapy: the battery needs no more than headers, and
so nothing must be installed, or imported for a second and a half, to run it. scapy is the tests'
independent parser instead.
"""
