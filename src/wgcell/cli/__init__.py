"""The command line: one file a verb, ``main`` puts them together, ``terminal`` tells."""
