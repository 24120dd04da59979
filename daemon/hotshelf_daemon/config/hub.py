"""What `hf://` sources are asked of, and with whose token."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator


class HubSettings(BaseModel):
    """The Hugging Face Hub, or what speaks its language. The token goes to the endpoint's host and nowhere else."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: HF_ENDPOINT.
    endpoint: str = Field(default="https://huggingface.co", pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$")
    #: HF_TOKEN, and HF_TOKEN_FILE: read anew for each request, so that it may be exchanged.
    token: SecretStr | None = None
    token_file: str | None = None
    #: Globs of ORG/NAME, the only repositories that may be named; empty is every one that the token may read.
    repos: list[str] = []
    #: A path to a CA bundle, when the endpoint's certificate is your own.
    ca_bundle: str | None = None
    #: Folders in which Hugging Face's libraries keep their caches: what lies there is taken, once it is hashed, instead of
    #: being fetched. HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, or `hub` in HF_HOME.
    caches: list[str] = Field(default=[], max_length=16)

    @field_validator("caches")
    @classmethod
    def _are_absolute(cls, value: list[str]) -> list[str]:
        if not all(path.startswith("/") and "\0" not in path for path in value):
            raise ValueError("must be absolute paths")
        return value

    @field_validator("endpoint")
    @classmethod
    def _has_a_port_that_is_one(cls, value: str) -> str:
        try:
            _ = urlsplit(value).port
        except ValueError:
            raise ValueError("is no address") from None
        return value.rstrip("/")

    @field_validator("token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[ -~]*", value.get_secret_value()):
            raise ValueError("is no token: it holds characters that none has")
        return value

    def secrets(self) -> frozenset[str]:
        text = self.token.get_secret_value() if self.token is not None else ""
        return frozenset({text} if text else ())


def cache_of(env: Mapping[str, str]) -> tuple[str, str] | None:
    """Which variable says where huggingface_hub's cache lies, in that library's order, and where; None when none does."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if value := env.get(variable):
            return variable, os.path.abspath(os.path.join(os.path.expandvars(os.path.expanduser(value)), below))
    return None


class HubMirrorSettings(BaseModel):
    """The mirror of the hub on `page_listen`: switched on by a token, which clients have as their HF_TOKEN."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    token: SecretStr | None = Field(default=None, min_length=16)
    token_file: str | None = None

    def secrets(self) -> frozenset[str]:
        return frozenset({self.token.get_secret_value()} if self.token is not None else ())
