"""The worker's entry point: a RunPod-shaped job in, images out. `python -m hotshelf.handler`.

    --test_input '{"input": {"model": "sdxl", "prompt": "a red circle"}}'   one job, its JSON on stdout
    --test_input_file job.json                                              the same from a file
    --serve 127.0.0.1:8000                                                  POST / takes a job, GET /health answers

With none of these: RunPod's own loop where its package is installed, else --serve on 127.0.0.1:8000. Where no daemon
answers it starts one (`HOTSHELF_AUTOSTART=0` forbids that). One process serves many jobs, whatever any of them dies of.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from hotshelf.client import Client
from hotshelf_shared.errors import HotshelfError, InvalidRequest
from hotshelf_shared.manifest import parse_json
from hotshelf_shared.wire import nearest

log = logging.getLogger("hotshelf")
DEFAULT_ADDRESS = "127.0.0.1:8000"
MAX_JOB_BYTES = 1 << 20
MAX_IMAGES = 16

_LOADING = (
    *("loras", "lora_mode", "components", "config", "pipeline_class", "device", "dtype", "attention", "offload"),
    *("quantization_config", "snapshot", "compile", "revision", "variant", "allow_patterns", "ignore_patterns", "timeout"),
)
_DRAWING = ("negative_prompt", "num_inference_steps", "guidance_scale", "width", "height")
_FIELDS = ("model", "prompt", "seed", "num_images", "parameters", *_LOADING, *_DRAWING)


@dataclass(frozen=True, slots=True)
class Job:
    """One job, checked. `loading` goes to `load_pipeline`, `drawing` to the pipeline's call."""

    id: str
    model: str
    loading: Mapping[str, Any]
    drawing: Mapping[str, Any]
    seed: int

    @classmethod
    def parse(cls, body: object) -> Self:
        """Raises InvalidRequest naming the field."""
        if not isinstance(body, Mapping) or not isinstance(body.get("input"), Mapping):
            raise InvalidRequest('a job is {"input": {"model": …, "prompt": …}}')
        given: Mapping[str, Any] = body["input"]
        for name in given:
            if name not in _FIELDS:
                hint = f"{nearest(str(name), _FIELDS)} Arguments of the pipeline's own go into `parameters`."
                raise InvalidRequest(f"the job's input has an unknown field {str(name)[:80]!r}", hint=hint)
        for name in ("model", "prompt"):
            if not isinstance(given.get(name), str) or not given[name].strip():
                raise InvalidRequest(f"the job has no {name}", hint=f'Write {{"input": {{"{name}": "…"}}}}.')
        images = _number(given, "num_images", 1, 1, MAX_IMAGES)
        own = given.get("parameters") or {}
        if not isinstance(own, Mapping):
            raise InvalidRequest("parameters is a mapping of arguments for the pipeline")
        drawing = {**own, **{name: given[name] for name in _DRAWING if given.get(name) is not None}}
        return cls(
            id=re.sub(r"[^A-Za-z0-9._-]", "_", str(body.get("id") or f"job-{time.time_ns():x}"))[:100],
            model=given["model"],
            loading={name: given[name] for name in _LOADING if given.get(name) is not None},
            drawing={"prompt": given["prompt"], **drawing, **({"num_images_per_prompt": images} if images > 1 else {})},
            seed=_number(given, "seed", 0, 0, (1 << 63) - 1),
        )


def _number(given: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidRequest(f"{name} is a whole number from {least} to {most}")
    return value


class Worker:
    """Draws one job at a time; the model stays in memory between jobs."""

    def __init__(self, client: Client, out: Path) -> None:
        self._client = client
        self._out = out
        self._turn = threading.Lock()

    def run(self, body: object) -> dict[str, Any]:
        """``{"id", "image", "images", "seed", "phases", "explain"}``, or ``{"id", "error": problem}``. Never raises."""
        id_ = str(body.get("id", "")) if isinstance(body, Mapping) else ""
        try:
            job = Job.parse(body)
            with self._turn:
                return self._draw(job)
        except HotshelfError as error:
            return {"id": id_, "error": error.to_problem()}
        except Exception as error:  # a pipeline may die of anything; the next job is served all the same
            log.exception("a job failed")
            reason = (str(error).splitlines() or ["no message"])[0][:300]
            failure = HotshelfError(f"drawing failed: {type(error).__name__}: {reason}", hint="See the worker's log.")
            return {"id": id_, "error": failure.to_problem()}

    def _draw(self, job: Job) -> dict[str, Any]:
        from hotshelf.pipelines import explain, load_pipeline

        pipe = load_pipeline(job.model, client=self._client, **{"device": "auto", **job.loading})
        import torch

        how = explain(pipe)
        began = time.monotonic()
        pipe.set_progress_bar_config(disable=True)
        try:
            drawn = pipe(**job.drawing, generator=torch.Generator("cpu").manual_seed(job.seed))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise InvalidRequest(
                f"{type(pipe).__name__} does not take that: {str(error)[:300]}", hint="Correct the job's input."
            ) from error
        pictures = getattr(drawn, "images", None)
        if not isinstance(pictures, list) or not pictures or not hasattr(pictures[0], "save"):
            raise InvalidRequest(f"{type(pipe).__name__} returns no images", hint="Use load_pipeline in a handler of your own.")
        how["phases"]["draw"] = round(time.monotonic() - began, 4)
        images = [self._save(f"{job.id}-{number}.png", picture) for number, picture in enumerate(pictures)]
        phases = how.pop("phases")
        return {
            "id": job.id,
            "image": images[0]["path"],
            "images": images,
            "seed": job.seed,
            "phases": phases,
            "explain": how,
        }

    def _save(self, name: str, picture: Any) -> dict[str, Any]:
        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / name
        picture.save(path, format="PNG")
        digest = sha256(path.read_bytes()).hexdigest()
        return {"path": str(path), "width": picture.width, "height": picture.height, "sha256": digest}


_workers: list[Worker] = []


def handler(job: object) -> dict[str, Any]:
    """For RunPod, or anybody with a job: one worker in this process serves them all."""
    if not _workers:
        out = os.environ.get("HOTSHELF_OUTPUT_DIR") or "outputs"
        autostart = None if "HOTSHELF_AUTOSTART" in os.environ else True
        _workers.append(Worker(Client(autostart=autostart), Path(out)))
    return _workers[0].run(job)


def serve(address: str, work: Callable[[object], dict[str, Any]] = handler) -> None:
    """Plain HTTP until interrupted: ``POST /`` (or RunPod's ``/runsync``) takes a job, ``GET /health`` answers."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise InvalidRequest(f"{address!r} is no HOST:PORT")

    class Edge(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = self.path == "/health"
            self._answer(200 if found else 404, {"status": "ok"} if found else {"error": "GET /health or POST /"})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MAX_JOB_BYTES:
                self.close_connection = True
                self._answer(413, {"error": f"a job has a Content-Length of at most {MAX_JOB_BYTES:,} bytes"})
                return
            try:
                result = work(parse_json(self.rfile.read(int(length)), "the job", InvalidRequest))
            except HotshelfError as error:
                result = {"id": "", "error": error.to_problem()}
            problem = result.get("error")
            self._answer(problem["status"] if problem else 200, result)

        def _answer(self, status: int, body: object) -> None:
            data = json.dumps(body, default=str).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's word
            log.info(format, *args)

    with ThreadingHTTPServer((host.strip("[]"), int(port)), Edge) as server:
        print(f"hotshelf worker: POST a job to http://{host}:{server.server_port}/", file=sys.stderr, flush=True)
        server.serve_forever()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="hotshelf.handler", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--test_input", metavar="JSON", help="run one job and print its result")
    parser.add_argument("--test_input_file", metavar="FILE", help="the same, the job in a file")
    parser.add_argument("--serve", metavar="HOST:PORT", help="serve jobs over plain HTTP")
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        if given.test_input is not None or given.test_input_file is not None:
            text = given.test_input if given.test_input is not None else _read(given.test_input_file)
            result = handler(parse_json(text, "the job", InvalidRequest))
            print(json.dumps(result, indent=2, default=str))
            return _exit_code(result)
        if given.serve is None and find_spec("runpod") is not None:
            import runpod

            runpod.serverless.start({"handler": handler})
            return 0
        serve(given.serve or DEFAULT_ADDRESS)
    except HotshelfError as error:
        print(json.dumps({"error": error.to_problem()}, indent=2))
        return error.exit_code
    except KeyboardInterrupt:
        pass  # how a person stops a server
    return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read the job {path}: {error}") from error


def _exit_code(result: Mapping[str, Any]) -> int:
    from hotshelf_shared.errors import from_problem

    return from_problem(result["error"]).exit_code if result.get("error") else 0


if __name__ == "__main__":
    sys.exit(main())
