"""nginx as the fast unsigned origin, and as a CDN in front of another: Range, ETag and If-Match. From Debian; ask for it with
`needs`."""

from __future__ import annotations

import os
import pathlib
import shutil
import ssl
import urllib.request
from typing import Self

from tests.servers.child import Child, clean_environment
from tests.servers.ports import free_ports

_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    default_type application/octet-stream;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache keys_zone=cdn:1m;
    server {{ listen 127.0.0.1:{port}{tls}; root {root}; location = /-/alive {{ return 200; }} {cdn} }}
}}
"""
#: What CDNs do with ranges: they fetch and keep pieces of an object.
_CDN = """location / {{
    slice 256k; proxy_set_header Range $slice_range; proxy_cache_key $uri$slice_range;
    proxy_pass {upstream}; proxy_http_version 1.1; proxy_cache cdn; proxy_cache_lock on; proxy_cache_valid 200 206 1h;
}}"""


class Nginx:
    """`with Nginx(folder) as origin:` serves what lies in `origin.root`: put `BUCKET/KEY` there for a path-style reader."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        root: pathlib.Path | None = None,
        certificate: pathlib.Path | None = None,
        upstream: str | None = None,
    ) -> None:
        """Over TLS with a `certificate`, as `certify` makes it. With an `upstream` URL it serves and keeps what that has."""
        self.folder, self.root, self._certificate = folder, root or folder / "root", certificate
        self._cdn = _CDN.format(upstream=upstream) if upstream else ""
        (self.port,) = free_ports(1)
        self._child: Child | None = None

    @property
    def endpoint_url(self) -> str:
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers. Raises StartFailed."""
        self.root.mkdir(parents=True, exist_ok=True)
        config = self.folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""  # folders of tests are closed to nginx's own user
        tls = f" ssl; ssl_certificate {self._certificate}; ssl_certificate_key {self._certificate}" if self._certificate else ""
        config.write_text(_CONFIG.format(folder=self.folder, port=self.port, tls=tls, root=self.root, user=user, cdn=self._cdn))
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "nginx"
        argv = [program, "-p", str(self.folder), "-e", str(self.folder / "error.log"), "-c", str(config)]
        self._child = Child(argv, log=self.folder / "nginx.log", env=clean_environment())
        self._child.wait_ready(self._answers)

    def _answers(self) -> bool:
        trusted = ssl.create_default_context(cafile=self._certificate) if self._certificate else None
        with urllib.request.urlopen(f"{self.endpoint_url}/-/alive", timeout=2, context=trusted) as response:
            return bool(response.status == 200)

    def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
