"""A plain aiohttp server: `python server.py`, then POST / {"prompt": "a lighthouse at night"} answers a PNG.

HOST and PORT say where it listens. Beside a hotshelfd set HOTSHELF_AUTOSTART=0; else it starts one.
"""

import asyncio
import io
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from aiohttp import web

import hotshelf

os.environ.setdefault("HOTSHELF_AUTOSTART", "1")
PIPE = hotshelf.load_pipeline(os.environ.get("MODEL", "sdxl"), device="auto")
#: A pipeline draws one picture at a time; the loop goes on answering meanwhile.
DRAWING = ThreadPoolExecutor(1)


def picture(prompt: str, steps: int = 30, seed: int = 0) -> bytes:
    image = PIPE(prompt, num_inference_steps=steps, generator=torch.Generator("cpu").manual_seed(seed)).images[0]
    image.save(png := io.BytesIO(), "PNG")
    return png.getvalue()


async def draw(request: web.Request) -> web.Response:
    try:
        job = await request.json()
        png = await asyncio.get_running_loop().run_in_executor(DRAWING, lambda: picture(**job))
    except (TypeError, ValueError) as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error
    return web.Response(body=png, content_type="image/png")


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/", draw)
    web.run_app(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))
