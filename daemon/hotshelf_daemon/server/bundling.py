"""The calls by which workers share compile caches: an archive that was handed in becomes a bundle, and is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from hotshelf_daemon.acquire import BundleBinder, Bundles, Peer
from hotshelf_daemon.server.calls import Calls, Route, read_body
from hotshelf_daemon.server.replies import as_json
from hotshelf_shared.bundle import MAX_BUNDLE_BODY_BYTES, BundleName, BundleRequest, environment_key


@dataclass(slots=True)
class Bundling:
    """What these calls work with."""

    binder: BundleBinder
    bundles: Bundles


async def bind_bundle(calls: Calls, request: web.Request, peer: Peer) -> web.StreamResponse:
    name = _name(request)
    order = BundleRequest.parse(await read_body(request, MAX_BUNDLE_BODY_BYTES))
    new = await calls.bundling.binder.bind(name, order, uid=peer.uid)
    return as_json(await calls.bundling.bundles.show(name, uid=peer.uid), status=201 if new else 200)


async def show_bundle(calls: Calls, request: web.Request, peer: Peer) -> web.StreamResponse:
    return as_json(await calls.bundling.bundles.show(_name(request), uid=peer.uid))


async def list_bundles(calls: Calls, _request: web.Request, peer: Peer) -> web.StreamResponse:
    return as_json({"bundles": calls.bundling.bundles.listed(None, uid=peer.uid)})


async def list_bundles_of(calls: Calls, request: web.Request, peer: Peer) -> web.StreamResponse:
    environment = environment_key(request.match_info["environment_key"])
    return as_json({"bundles": calls.bundling.bundles.listed(environment, uid=peer.uid)})


def _name(request: web.Request) -> BundleName:
    return BundleName.of(request.match_info["environment_key"], request.match_info["graph_key"])


ROUTES = (
    Route("GET", "/v1/bundles", list_bundles, "List the bundles on the shelf that the caller may lease."),
    Route("GET", "/v1/bundles/{environment_key}", list_bundles_of, "List those of one environment."),
    Route("GET", "/v1/bundles/{environment_key}/{graph_key}", show_bundle, "Show a bundle that the caller may lease."),
    Route(
        "PUT",
        "/v1/bundles/{environment_key}/{graph_key}",
        bind_bundle,
        "Bind a held archive to its environment and graph, signed.",
        also={"201": "It is bound; 200 says that it was."},
    ),
)
