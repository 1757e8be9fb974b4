"""Questions to a running cell, and orders: one unix socket, `control`, in the cell's folder.

`words` is what is said there, `listener` the cell's end, `client` the other, `place` where it is.
"""
