"""Cells for programs: each has a supervisor that is a process of its own, and is a client of it.

Nothing here holds a key, and nothing here must live for a cell to be confined: if the program ends,
however it ends, its cells end in order, unless they were detached.
"""
