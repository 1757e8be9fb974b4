"""QEMU as a machine: its command line (pure), the accelerator, the process and its monitor."""
