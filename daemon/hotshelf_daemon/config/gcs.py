"""The settings of Google Cloud Storage; and what an address in any settings may be."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator


def plain_address(url: str, instead: str) -> str:
    """The address as it is. Raises ValueError when it holds credentials (say what to do `instead`) or is none."""
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError(f"holds credentials: {instead}")
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError("is no address") from None
    return url


class GcsSettings(BaseModel):
    """Credentials: the file's, else Application Default Credentials, else nobody's, which is enough for public buckets."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint_url: str | None = Field(default=None, pattern=r"^https?://")
    #: A service account's key as Google writes it, in JSON.
    service_account_file: str | None = None
    #: Who pays for what is read from buckets that let whoever asks pay.
    project: str | None = None
    unsigned: bool = False
    max_connections: int = Field(default=16, ge=1, le=256)
    #: A path to a CA bundle, when the endpoint's certificate is your own.
    ca_bundle: str | None = None

    @field_validator("endpoint_url")
    @classmethod
    def _holds_no_credentials(cls, value: str | None) -> str | None:
        return None if value is None else plain_address(value, "name a key in service_account_file")
