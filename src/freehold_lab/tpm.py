"""TPM 2.0 by swtpm: the vendor that certifies endorsement keys, the TPM of one machine, its daemon.

The lab has one TPM vendor (root and issuing CA under `<lab>/tpm-vendor/`). A TPM is manufactured once per machine,
with an RSA-2048 endorsement key and its certificate in NV index 0x01C00002 (TCG EK Credential Profile 2.5, 2.2.1.4).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from freehold_lab.processes import run

STATE, SOCKET = "tpm", "tpm.sock"


@dataclass(frozen=True)
class TpmVendor:
    directory: Path

    @property
    def root_certificate(self) -> Path:
        return self.directory / "swtpm-localca-rootca-cert.pem"

    @property
    def issuing_certificate(self) -> Path:
        return self.directory / "issuercert.pem"

    @property
    def _setup(self) -> Path:
        return self.directory / "setup.conf"

    def establish(self) -> None:
        """Write the vendor's configuration; its CA comes into being with the first TPM. Idempotent."""
        here = self.directory.resolve()
        here.mkdir(parents=True, exist_ok=True)
        (here / "ca.conf").write_text(
            f"statedir = {here}\nsigningkey = {here}/signkey.pem\nissuercert = {here}/issuercert.pem\n"
            f"certserial = {here}/certserial\n"
        )
        (here / "ca.options").write_text(
            "--platform-manufacturer Freehold\n--platform-version 1.0\n--platform-model LabServer\n"
        )
        self._setup.write_text(
            f"create_certs_tool={shutil.which('swtpm_localca')}\ncreate_certs_tool_config={here}/ca.conf\n"
            f"create_certs_tool_options={here}/ca.options\nactive_pcr_banks=sha256\n"
        )

    def manufacture(self, server: Path, serial: str) -> None:
        """Make the TPM of one machine in `<server>/tpm/`. One that exists is left alone: its keys are its identity."""
        state = server / STATE
        if (state / "tpm2-00.permall").exists():
            return
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(parents=True)
        run(
            *("swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert", "--create-platform-cert"),
            *("--lock-nvram", "--pcr-banks", "sha256", "--config", self._setup.resolve(), "--vmid", serial),
        )


def daemon_command() -> list[str]:
    """One run of the TPM, from power-on or reset to the next; paths are relative to the machine's directory."""
    return [
        *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={STATE}"),
        *("--ctrl", f"type=unixio,path={SOCKET}", "--flags", "startup-clear"),
    ]
