# See blockdev.py for why os and not pathlib.
"""`python -I -S -m freehold.agent [--mode ramdisk|os]`: read /etc/freehold, then run until ordered to leave.

/etc/freehold holds `site.json` {"site": name, "controller": "https://172.30.2.2:8443"}, `ca.pem` (who the controller
must prove to be) and `image.pub` (whose images may be written). All three come from the signed boot image, never from
the network.
"""

import json
import os
import sys

from freehold.agent.client import Agent, Controller, say
from freehold.agent.errors import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl


def configuration(directory: str) -> tuple[str, str]:
    """(controller's URL, path of the CA); AgentError names the file at fault."""
    path, ca = (os.path.join(directory, name) for name in ("site.json", "ca.pem"))
    remedy = "rebuild the agent's image for this site"
    try:
        with open(path, "rb") as file:
            site = json.load(file)
        url = site["controller"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AgentError(f"{path} is unusable: {error!r}", remedy=remedy) from error
    if not isinstance(url, str) or not url.startswith("https://"):
        raise AgentError(f"{path}: controller is not an https address", remedy=remedy)
    if not os.path.exists(ca):
        raise AgentError(f"{ca} is missing", remedy=remedy)
    return url, ca


def trust(ca: str) -> "ssl.SSLContext":
    """A context that verifies the controller: CERT_REQUIRED and checks of the host name (IP SAN) are its defaults."""
    import ssl

    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the CA is trusted itself, whoever certified it
    return context


def main(arguments: list[str]) -> int:
    """Exit status 2: bad usage or configuration, which no retry mends."""
    mode = "ramdisk"
    if arguments:
        if len(arguments) != 2 or arguments[0] != "--mode" or arguments[1] not in ("ramdisk", "os"):
            say("usage: python -m freehold.agent [--mode ramdisk|os]")
            return 2
        mode = arguments[1]
    try:
        url, ca = configuration("/etc/freehold")
        controller = Controller(url, lambda: trust(ca))
    except (AgentError, OSError) as error:
        say(f"cannot start: {error}")
        return 2
    say(f"{mode} agent, controller {url}")
    Agent(controller, mode).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
