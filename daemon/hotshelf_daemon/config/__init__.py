"""Configuration: one frozen `Settings`, read from flags, environment and YAML by `load`."""

from hotshelf_daemon.config.layers import Loaded, load, reread, sign_password
from hotshelf_daemon.config.settings import ModelSettings, OriginSettings, Settings, share_of

__all__ = ["Loaded", "ModelSettings", "OriginSettings", "Settings", "load", "reread", "share_of", "sign_password"]
