"""The routes of the agent API, as the application itself has them: a new one is tested without being named here."""

import re

from aiohttp import web

FOR_STRANGERS = {("POST", f"/agent/v1/{word}") for word in ("hello", "attest", "enter")}
"""Whoever has no certificate yet has to be heard here, and nowhere else."""


def guarded(app: web.Application) -> list[tuple[str, str]]:
    """(method, path) of every route that is for the certificate of a live session; "1" in the place of each name."""
    routes = {(each.method, each.resource.canonical) for each in app.router.routes() if each.resource is not None}
    assert routes >= FOR_STRANGERS
    return sorted((method, re.sub(r"\{\w+\}", "1", path)) for method, path in routes - FOR_STRANGERS)
