"""`python handler.py`, as in the worker image: RunPod's loop where its package is installed, else plain HTTP."""

import sys

from hotshelf.handler import handler, main

__all__ = ["handler"]

if __name__ == "__main__":
    sys.exit(main())
