"""`python -m freehold_lab.bmc --port N --state-dir D`: one BMC of a server in memory.

For people who develop a Redfish client: it prints its address and the factory credentials.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware, example_info
from freehold_lab.bmc.service import serve


async def _run(config: BmcConfig, number: int) -> None:
    runner = await serve(MemoryHardware(example_info(number)), config)
    try:
        host, port = runner.addresses[0][:2]
        sys.stdout.write(f"https://{host}:{port} user {config.factory_user} password {config.factory_password}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m freehold_lab.bmc", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443, help="0 takes a free one")
    parser.add_argument("--state-dir", type=Path, required=True, help="what the BMC remembers; made if missing")
    parser.add_argument("--number", type=int, default=1, help="which made-up server (1 to 99)")
    parser.add_argument("--user", default="root")
    parser.add_argument("--password", default="factory-pass", help="of the factory account")
    parser.add_argument("--reset-seconds", type=float, default=3.0, help="how long Manager.Reset takes")
    options = parser.parse_args()
    config = BmcConfig(
        factory_password=options.password,
        state_dir=options.state_dir,
        address=options.address,
        port=options.port,
        factory_user=options.user,
        reset_seconds=options.reset_seconds,
    )
    try:
        asyncio.run(_run(config, options.number))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
