"""A worker that hands things in: blobs, then the pipeline they make, over the socket and as whoever it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hotshelf_shared.recipe import Recipe
from tests import objects
from tests.daemon.peers import Somebody
from tests.daemon_process import Daemon, Reply
from tests.objects import Digest

#: The store's group, and uids that nobody of this machine has.
GROUP, WORKER, OTHER = 61_000, 61_001, 61_002


def recipe_of(seed: object = 0, **more: Any) -> Recipe:
    """A recipe of its own for every seed."""
    return Recipe(base=Digest.of(repr(seed).encode()), dtype="float16", **more)


def manifest_json(tree: Mapping[str, bytes]) -> dict[str, Any]:
    return objects.manifest_of(tree).to_json()


class Worker:
    """`Worker(daemon)` is of the daemon's own uid; with `uid` another one, which needs root and the daemon's socket_group."""

    def __init__(self, daemon: Daemon, uid: int | None = None) -> None:
        self.daemon, self.uid = daemon, uid

    def ask_all(self, *requests: tuple[str, str, Any]) -> list[Reply]:
        if self.uid is None:
            return [self.daemon.call(*request) for request in requests]
        as_text = [(method, target, body.decode("latin-1") if isinstance(body, bytes) else body)
                   for method, target, body in requests]  # fmt: skip
        return Somebody(self.daemon.socket, uid=self.uid, gid=self.uid, groups=[GROUP]).ask_all(*as_text)

    def ask(self, method: str, target: str, body: Any = None) -> Reply:
        return self.ask_all((method, target, body))[0]

    def has(self, data: bytes) -> bool:
        reply = self.ask("HEAD", f"/v1/blobs/{Digest.of(data)}")
        assert reply.status in (200, 404), reply
        assert reply.status == 404 or reply.headers["x-hotshelf-size"] == str(len(data))
        return reply.status == 200

    def put(self, data: bytes, digest: str | None = None) -> Reply:
        return self.ask("PUT", f"/v1/blobs/{digest or Digest.of(data)}", data)

    def hand_in(self, tree: Mapping[str, bytes]) -> None:
        replies = self.ask_all(*(("PUT", f"/v1/blobs/{Digest.of(data)}", data) for data in tree.values()))
        assert {reply.status for reply in replies} <= {201, 204}, replies

    def bind(self, recipe: Recipe, tree: Mapping[str, bytes], *, key: str | None = None, **more: Any) -> Reply:
        body = {"recipe": recipe.to_json(), "manifest": manifest_json(tree), **more}
        return self.ask("PUT", f"/v1/pipelines/{key or recipe.key}", body)

    def build(self, recipe: Recipe, tree: Mapping[str, bytes], **more: Any) -> Any:
        """All of it; what the daemon says of the new pipeline."""
        self.hand_in(tree)
        reply = self.bind(recipe, tree, **more)
        assert reply.status == 201, reply
        return reply.body

    def show(self, key: str) -> Reply:
        return self.ask("GET", f"/v1/pipelines/{key}")

    def lease(self, *sources: str, **more: Any) -> Reply:
        body = {"source": sources[0]} if len(sources) == 1 else {"sources": list(sources)}
        return self.ask("POST", "/v1/leases", {**body, **more})
