"""From a description of a machine to a running QEMU, and to its end.

``argv`` turns a frozen ``MachineSpec`` into a command line (pure), ``accelerator`` finds out by
starting a guest whether KVM works here, ``process`` starts QEMU, speaks QMP with it and kills it.
Nothing here knows what the machine's network card is connected to: it is handed a socket.
"""
