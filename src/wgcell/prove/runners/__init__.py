"""How a case is run: in the relay's own process, or from within a VM.

::

    harness      one relay, with a socket where QEMU would be
    direct       each case into a relay's process, then its control into a pass-through relay
    storm        frames by the thousand at one relay
    boots        which VMs are booted, with which of their walls, for which cases
    cell         one such VM from its start to its end
    recording    what is left of it: packets, marks, messages
    vm           each boot in turn, and a result for each of its cases
    guest        runs in the guest and makes its attacks
"""
