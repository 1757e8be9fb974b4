"""Bytes <-> headers. Pure, standard library only; offsets are named once, lengths checked first."""
