"""`sovereignty.prove.Rack` on the lab: the lab's own program cuts, counts and probes."""

import asyncio
import json
from pathlib import Path
from typing import Any

from freehold.interfaces.cli.lab import SSH_KEY, lab_command
from freehold.model.errors import FreeholdError
from freehold.sovereignty.prove import Count

PROBE_SECONDS = 3
USER = "ops"
# Prints connected, refused or timeout. Only the standard library: it runs where there is nothing else.
PROBE = (
    "import socket,sys\n"
    f"try:\n socket.create_connection((sys.argv[1], int(sys.argv[2])), {PROBE_SECONDS}).close(); print('connected')\n"
    "except ConnectionRefusedError: print('refused')\n"
    "except OSError as error: print('timeout' if isinstance(error, TimeoutError) else 'unreachable')\n"
)
# Tries to leave by address (TCP) and by name (a DNS query to an outside server, sent by hand: nobody configured one).
ATTEMPT = (
    "import socket,sys\n"
    "try:\n socket.create_connection((sys.argv[1], 80), 2).close()\n"
    "except OSError: pass\n"
    "query = bytes.fromhex('466801000001000000000000') + b'\\x07example\\x03com\\x00\\x00\\x01\\x00\\x01'\n"
    "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.sendto(query, (sys.argv[1], 53))\n"
)


class LabRack:
    """The lab in `directory`."""

    def __init__(self, directory: Path, facts: dict[str, Any]) -> None:
        self._directory, self._facts = directory, facts

    async def cut(self) -> None:
        await self._ask("wan", "cut")

    async def count(self) -> Count:
        counters = await self._ask("wan", "counters")
        return Count(packets=int(counters["left"]), lookups=int(counters["lookups"]))

    async def attempt(self) -> None:
        for place in ("controller", "client"):
            await self._run("exec", place, "--", "python3", "-c", ATTEMPT, self._facts["internet"])

    async def reachability(self, server: str) -> list[dict[str, str]]:
        """From the operator's host in production, and from the server itself, which has a leg in both networks."""
        bmc = self._server(server)["bmc_address"]
        client = await self._probe_from_client(bmc, 443)
        inside = await self._probe_from_server(server, bmc, 443)
        return [
            {"from": "production (client)", "to": f"{bmc}:443", "outcome": client},
            {"from": "production and provisioning (the server's own OS)", "to": f"{bmc}:443", "outcome": inside},
        ]

    async def control_reachability(self, server: str) -> str:
        """The client reaches the server's ssh, and the server reaches the controller: both, or it is no control."""
        client = await self._probe_from_client(self._server(server)["production_address"], 22)
        inside = await self._probe_from_server(server, self._facts["controller"]["provisioning"], 8443)
        return client if client != "connected" else inside

    async def _probe_from_client(self, address: str, port: int) -> str:
        return await self._run("exec", "client", "--", "python3", "-c", PROBE, address, str(port))

    async def _probe_from_server(self, server: str, address: str, port: int) -> str:
        # base64 so that the probe survives the remote shell as it is.
        import base64

        text = base64.b64encode(PROBE.encode()).decode()
        remote = f"echo {text} | base64 -d | python3 - {address} {port}"
        key = str(self._directory / SSH_KEY)
        return await self._run("ssh", server, "--user", USER, "--identity", key, "--", remote)

    def _server(self, name: str) -> dict[str, Any]:
        return next(dict(server) for server in self._facts["servers"] if server["name"] == name)

    async def _ask(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self._run(*arguments, "--output", "json"))
        return answer

    async def _run(self, *arguments: str) -> str:
        command = lab_command(*arguments, directory=self._directory)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), 60)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise FreeholdError(f"lab {' '.join(arguments[:2])} did not answer in 60 s") from None
        if process.returncode != 0:
            words = errors.decode(errors="replace").strip()[-500:]
            raise FreeholdError(f"lab {' '.join(arguments[:2])} failed: {words}")
        return output.decode().strip()
