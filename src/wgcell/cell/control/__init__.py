"""Questions to a running cell, and orders: one unix socket, `control`, in the cell's folder.

`words` has the messages, `listener` is the cell's end, `client` the other, `place` the address.
"""
