"""Stores as earlier versions left them, kept for good: the next version must open them and lose nothing.

Each of `stores/*.tar.xz` was written (by `writing`) by a version whose newest migration was the one it is named after, and
whose daemon was killed at the end: its write-ahead log is there, leases are held, a download is half done.
"""
