"""The surfaces of other systems, kept by name: a module each. None is loaded before it is asked for."""
