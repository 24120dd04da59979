"""Power cuts under the real daemon: `writer` fills a store until it is cut off, `check` looks at what survived.

Both take $ROOT, a mounted file system, and $ACK, a file outside of it to which the writer appends a line for each
snapshot that it was promised. `python -m tests.faults.powercut.writer [--without-sync]`, `python -m …check`.
"""
