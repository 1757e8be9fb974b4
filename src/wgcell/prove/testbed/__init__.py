"""The network around a battery: a host with one cable, and a LAN of decoys at its other end.

::

    namespace of the host                          namespace of the decoys
    relay, QEMU, the battery itself                198.51.100.10:51820  endpoint (boringtun)
                                                   198.51.100.11:51820  an endpoint that is silent
    lo                                             192.0.2.10  192.0.2.254  192.168.1.1  10.0.0.1
    lan0 192.0.2.1/24  <------ veth ------>  lan1  169.254.169.254  203.0.113.7 …  live: they answer
         default via 192.0.2.254                   ARP, ping, and on TCP and UDP ports

IPv6 is off and each kernel knows its neighbour, so a quiet cable carries nothing: every packet in
the captures of the two namespaces comes from the cell. Both namespaces belong to this process, made
as root or in a user namespace, and end with it.

::

    base          the Protocol of a testbed, and its addresses
    namespaces    system calls: network namespaces, capabilities, ip(8)
    endpoint      boringtun, and the keys of its peers
    lan           the testbed with two namespaces
    socket_only   the testbed without namespaces, where this machine allows none
    prepare       which of the two this machine allows
    capture       captures that know nothing of the relay
    passthrough   a relay that checks nothing, for the controls
    meter         what a cell takes of its host
"""
