"""``python -m wgcell`` is ``wgcell``."""

from wgcell.cli.main import program

program()
