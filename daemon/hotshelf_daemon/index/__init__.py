"""The SQLite index: what is on the shelf and who holds it. One writer; anyone may read the `v_*` views.

`Index` runs changes; the modules beside it are the changes and looks themselves, functions of a connection, so that a use
case can put several into one transaction. SQLite in a temporary directory is quick enough to be its own twin in tests.
"""

from hotshelf_daemon.index.connection import Index, Unreadable, Unwritable
from hotshelf_daemon.index.mounts import file_system_of, refuse_network_file_system
from hotshelf_daemon.index.opening import open_index, set_aside

__all__ = ["Index", "Unreadable", "Unwritable", "file_system_of", "open_index", "refuse_network_file_system", "set_aside"]
