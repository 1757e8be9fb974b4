"""How a virtual machine's process is closed in: a jail and a control group."""
