"""One cell, from a job to its result.

``job``, ``wgquick``, ``provider``, ``endpoint`` and ``inputs`` (with ``excludes`` and ``globs``)
read what people wrote, and refuse it by name; ``consent`` asks the endpoint; ``states`` is the
table of a cell's life; ``supervisor`` lives it, with ``children`` for the relay and the gateway;
``folder``, ``events`` and ``archive`` keep what comes of it, and ``outputs`` brings it home, by a
plan of ``changes``.
"""
