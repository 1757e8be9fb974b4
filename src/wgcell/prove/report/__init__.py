"""A report: ``content`` is all it says; ``formats`` and ``page`` write it. No I/O.

Every word from outside (a relay's reason, a captured byte, a host's name) is escaped where it is
inserted.
"""
