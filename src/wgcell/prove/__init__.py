"""The leak battery: what a hostile guest tries, watched from outside.

A proof of isolation needs a test that could fail. So each case runs twice: against the wall, where
nothing may leave, and with the wall down, its *control*, where the captures must show the same
bytes. A case whose control was not seen is *not proven*, and never passed.

::

    battery       the cases, and what must become of each
    verdict       what an observation proves: the captures decide, not the relay
    testbed       a decoy LAN in network namespaces, its captures, and the relay of the controls
    runners       run a case in the relay's own process, or from within VMs
    report        a run as JSON, JUnit XML and HTML
    request, run  what a user asks, and how that becomes a report
    provenance    where and with what a run was made

Without a VM, the relay is started as the supervisor starts it (`RelayProcess`), a fresh one for
each case, and sees a real handshake first. With a VM, the guest's init is the stock one or hostile,
its walls are up or down, and the relay is real or a pass-through. Together these show that each
wall holds alone (`runners.boots`).

Where this machine allows no network namespaces, the captures are at the relay's only socket, and
the report names what they miss.
"""
