"""SoftHSM 2 as a token: its store in a temporary folder, tokens made by its own tool."""

import os
import subprocess
from pathlib import Path

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN, WRONG_PIN = "1234", "9999"


class SoftHsm:
    def __init__(self, directory: Path) -> None:
        self.tokens = directory / "tokens"
        self.tokens.mkdir(parents=True)
        self.configuration = directory / "softhsm2.conf"
        self.configuration.write_text(f"directories.tokendir = {self.tokens}\nlog.level = ERROR\n")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SOFTHSM2_CONF": str(self.configuration)}

    def token(self, label: str) -> str:
        """A new token with `PIN`."""
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "12345678", "--pin", PIN]
        subprocess.run(command, check=True, capture_output=True, env=self.environment, timeout=30)
        return label
