"""Addresses: how their text is read, and which of them are special. A leaf: nothing of ours."""
