"""wgcell: run untrusted code in a VM whose only way out is one WireGuard tunnel."""

__version__ = "0.1.0"
