"""Cells as tools for a language model: a Model Context Protocol server over stdio (`wgcell mcp`).

`wgcell.mcpserver.desk` knows cells and no protocol, `wgcell.mcpserver.server` the protocol and no
cell. The
protocol is the ``mcp`` SDK's, which is an extra of the package: ``pip install 'wgcell[mcp]'``.

The model is as little trusted as its code: it reaches only the cells of its own session, can't
widen what they may reach, and gets no byte of the host's.
"""
