"""The cases: what a hostile guest or a stranger does, and what must become of it.

::

    case         one case, the frames that it sends, and what its attacker knows
    packets      frames with an honest value in every field that a case does not change
    probes       how a row of a table makes its frames
    headers, wireguard, inbound      tables of frames
    cases        all of them
    bypass       ways out by the guest's own network stack
    sabotage     guests that are hostile from their first process on; overlay: how they are made
    exhaustion   guests that take all they can get; usage: the bounds of what they may take
    pcap         a user's own frames

Every frame has one defect and is otherwise one that would pass, payload included. So a relay in
which a single check is missing lets it out, and the captures show it. A case that somebody finds
later gets a file in ``tests/prove/regressions/``.

The guest runs these modules, so they import nothing beyond the standard library and wgcell's own
modules of that kind. They make their frames with `wgcell.wire`; scapy, the tests' independent
parser, takes a second and a half to import.
"""
