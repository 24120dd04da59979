"""Configuration: one frozen `Settings`, read from flags, environment and YAML by `load`."""

from hotshelf_daemon.config.credentials import s3_credentials
from hotshelf_daemon.config.gcs import GcsSettings
from hotshelf_daemon.config.handing_on import hand_on, handed_on
from hotshelf_daemon.config.hub import HubSettings
from hotshelf_daemon.config.layers import hub_token, load, reread, sign_password
from hotshelf_daemon.config.loaded import Loaded
from hotshelf_daemon.config.models import ModelSettings
from hotshelf_daemon.config.settings import OriginSettings, Settings
from hotshelf_daemon.config.values import share_of
from hotshelf_daemon.config.watching import watched

__all__ = [
    "GcsSettings",
    "HubSettings",
    "Loaded",
    "ModelSettings",
    "OriginSettings",
    "Settings",
    "hand_on",
    "handed_on",
    "hub_token",
    "load",
    "reread",
    "s3_credentials",
    "share_of",
    "sign_password",
    "watched",
]
