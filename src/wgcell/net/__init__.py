"""Addresses: the reading of their text, and the table of the special ones. A leaf of the
imports."""
