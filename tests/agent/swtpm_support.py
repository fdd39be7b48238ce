"""Real software TPMs for tests: a local TPM vendor with its own CA, and running swtpm processes."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from freehold.agent.tpm import SocketTransport, Tpm, TpmError


class Vendor:
    """Makes TPMs whose EK certificates its own CA signs; `ca` holds issuercert.pem and its root."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.ca = directory, directory / "ca"
        self.ca.mkdir(parents=True)
        (directory / "ca.conf").write_text(
            f"statedir = {self.ca}\nsigningkey = {self.ca}/signkey.pem\nissuercert = {self.ca}/issuercert.pem\n"
            f"certserial = {self.ca}/certserial\n"
        )
        (directory / "ca.options").write_text(
            "--platform-manufacturer Test\n--platform-version 1\n--platform-model T\n"
        )
        (directory / "setup.conf").write_text(
            f"create_certs_tool={shutil.which('swtpm_localca')}\nactive_pcr_banks=sha256\n"
            f"create_certs_tool_config={directory}/ca.conf\ncreate_certs_tool_options={directory}/ca.options\n"
        )

    def make(self, name: str, *options: str, certificate: bool = True, banks: str = "sha256") -> Path:
        """The state directory of a new TPM. Options of swtpm_setup: `--ecc`, `--rsa-keysize 3072`: what EK it has."""
        state = self.directory / name
        state.mkdir()
        command = ["swtpm_setup", "--tpm2", "--tpmstate", state, "--pcr-banks", banks, *options]
        command += ["--config", self.directory / "setup.conf", "--vmid", name]
        if certificate:
            command += ["--create-ek-cert", "--create-platform-cert", "--lock-nvram"]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)
        return state

    def roots(self) -> Path:
        """A tpm-roots folder that trusts this vendor."""
        folder = self.directory / "roots"
        folder.mkdir(exist_ok=True)
        for path in self.ca.glob("*cert*.pem"):
            shutil.copy(path, folder)
        return folder


@contextlib.contextmanager
def running(state: Path) -> Iterator[Path]:
    """Power the TPM on; yields the socket of its data channel."""
    data, control = state / "data.sock", state / "control.sock"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", f"type=unixio,path={data}"]
    command += ["--ctrl", f"type=unixio,path={control}", "--flags", "startup-clear,not-need-init"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(500):
                if data.exists() and control.exists():
                    break
                time.sleep(0.01)
            yield data
        finally:
            process.terminate()
            process.wait(10)
            data.unlink(missing_ok=True)
            control.unlink(missing_ok=True)


@contextlib.contextmanager
def powered(state: Path) -> Iterator[Tpm]:
    """Power the TPM on and connect to it."""
    with running(state) as path, connect(path) as tpm:
        yield tpm


def connect(path: Path) -> Tpm:
    for _ in range(200):
        try:
            return Tpm(SocketTransport(str(path)))
        except TpmError:
            time.sleep(0.01)
    return Tpm(SocketTransport(str(path)))
