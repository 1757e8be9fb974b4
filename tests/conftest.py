"""For every test: a property may take its time, for the machine may be busy with something else."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("wgcell", deadline=None)
settings.load_profile("wgcell")
