"""What the daemon and the client both speak: errors, digests, manifests, sources and the messages of /v1.

Standard library only, so that the thin client stays thin.
"""

__version__ = "0.1.0"
