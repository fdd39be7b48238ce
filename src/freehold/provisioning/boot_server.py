"""Plain HTTP for firmware and ramdisk: only files that were registered, each with an exact length, ranges and HEAD.

No TLS: what is served is signed (the UKI by db, the stage by the UKI, images by their manifest); firmware TLS is weak.
OVMF asks with HEAD first and resets its keep-alive connection after the download: aiohttp takes both as normal.
"""

import logging
import re
from pathlib import Path

from aiohttp import web

from freehold.model.errors import FreeholdError

log = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class BootFiles:
    """What may be fetched: `boot/<name>` and `images/<name>`. Nothing is looked up in a directory, so nothing leaks."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], Path] = {}

    def register(self, folder: str, name: str, path: Path) -> None:
        """Serve `path` as /folder/name; again with another path replaces it. FreeholdError on a bad name or no file."""
        if folder not in ("boot", "images") or not NAME.fullmatch(name):
            raise FreeholdError(f"{folder}/{name} cannot be served", expected="boot/NAME or images/NAME, NAME plain")
        if not path.is_file():
            raise FreeholdError(f"{path} is not a file", remedy="build or import the artifact again")
        self._files[folder, name] = path

    def unregister(self, folder: str, name: str) -> None:
        """From now on 404."""
        self._files.pop((folder, name), None)

    def find(self, folder: str, name: str) -> Path | None:
        """The registered path."""
        return self._files.get((folder, name))


def create_boot_app(files: BootFiles) -> web.Application:
    """GET and HEAD /boot/NAME and /images/NAME; 404 for all else. Ranges and sendfile are aiohttp's FileResponse."""

    async def serve(request: web.Request) -> web.StreamResponse:
        folder, name = request.match_info["folder"], request.match_info["name"]
        path = files.find(folder, name)
        if path is None:
            log.warning("boot server: %s asked for %s, which is not registered", request.remote, request.path)
            raise web.HTTPNotFound
        log.info("boot server: %s %s %s", request.remote, request.method, request.path)
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    app = web.Application()
    app.router.add_get("/{folder:boot|images}/{name}", serve)
    return app
