"""gcp-storage-emulator as an origin: unsigned, in memory, with what the service does and it does not.

Run as a program it is the emulator with two mends: a read is of the generation that it names, and requests are served at once,
not one after another.
"""

from __future__ import annotations

import http.client
import http.server
import logging
import pathlib
import sys
from typing import Any, Self

from tests.servers.child import Child, StartFailed, clean_environment
from tests.servers.ports import free_ports


class GcsEmulator:
    """`with GcsEmulator(folder) as emulator:` starts it on a port of loopback; killed at exit."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._child: Child | None = None
        (self.port,) = free_ports(1)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except StartFailed:  # the port may have been taken since it was chosen
            (self.port,) = free_ports(1)
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "tests.servers.gcs", str(self.port)]
        self._child = Child(argv, log=self._folder / "gcs.log", env=clean_environment())
        self._child.wait_ready(self._answers, timeout_s=60)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except http.client.HTTPException:
            return False
        finally:
            connection.close()


def main(port: int) -> None:
    from gcp_storage_emulator import server
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    plain = objects.download

    def of_a_generation(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
        try:
            told = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])["generation"]
        except NotFound:
            told = None
        if told != request.query.get("generation", [told])[0]:
            response.status = http.HTTPStatus.NOT_FOUND
            return
        if told is not None:
            response["x-goog-generation"] = told
        plain(request, response, storage, *args, **kwargs)

    server.HANDLERS = tuple(
        (path, {method: of_a_generation if handler is plain else handler for method, handler in handlers.items()})
        for path, handlers in server.HANDLERS
    )
    server.server.HTTPServer = http.server.ThreadingHTTPServer
    logging.disable(logging.CRITICAL)
    server.create_server("127.0.0.1", port, in_memory=True).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
