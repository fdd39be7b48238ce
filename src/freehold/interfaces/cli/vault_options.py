"""Options that say which key a vault is to get, and who can recover it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from freehold.root_of_trust import custody
from freehold.root_of_trust.custody import Choice, Secret, Server
from freehold.root_of_trust.private_file import read_secret

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class KeyOptions:
    """As given; what a kind of key needs is required when that kind is asked for."""

    kek: str
    module: str | None
    token: str | None
    address: str | None
    ca: Path | None
    role_id: str | None
    mount: str | None
    transit_key: str
    pin_file: Path | None
    passphrase_file: Path | None
    secret_id_file: Path | None

    def choice(self, state: Path) -> Choice:
        """Raises `UsageError` if an option of this kind is missing."""
        match self.kek:
            case "pkcs11":
                module, token = self.required("module"), self.required("token")
                pin = _from(self.pin_file, "PIN", custody.given_pin)
                return Choice(custody.Pkcs11Place, lambda: custody.new_pkcs11(module, token, pin))
            case "tpm":
                return Choice(custody.TpmPlace, custody.new_tpm)
            case "openbao":
                server, mount = self.server(), self.mount or "transit"
                return Choice(
                    custody.TransitPlace,
                    lambda: custody.new_transit(server, mount, self.transit_key, self.secret_id),
                )
            case "passphrase":
                passphrase = _from(self.passphrase_file, "passphrase", custody.given_passphrase)
                return Choice(custody.PassphrasePlace, lambda: custody.new_passphrase(state, passphrase))
            case _:
                return Choice(custody.FilePlace, lambda: custody.new_file(state))

    def server(self) -> Server:
        ca = Path(self.required("ca")).resolve()
        return Server(self.required("address"), str(ca), self.required("role_id"))

    @property
    def secret_id(self) -> Secret:
        return _from(self.secret_id_file, "secret id", custody.given_secret_id)

    def required(self, name: str) -> str:
        value = getattr(self, name)
        if value is None:
            raise click.UsageError(f"--kek {self.kek} needs --{name.replace('_', '-')}")
        return str(value)


class Recipient(click.ParamType[tuple[str, str]]):
    """`alice=age1…`"""

    name = "NAME=AGE_RECIPIENT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, _, recipient = value.partition("=")
        if not recipient.startswith("age1"):  # it may be the secret key: do not print it
            self.fail("give a name and the public half that `age-keygen` printed, as in alice=age1…", param, ctx)
        return name, recipient


def people_option(command: F) -> F:
    """Passes `people`: name -> recipient."""

    def collect(ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, str], ...]) -> dict[str, str]:
        if len(dict(value)) < len(value):
            raise click.BadParameter("a name stands there twice", ctx, param)
        return dict(value)

    return click.option(
        "--recovery",
        "people",
        multiple=True,
        type=Recipient(),
        callback=collect,
        help="A person who can recover together with any other one; repeat it.",
    )(command)


def key_options(*kinds: str) -> Callable[[F], F]:
    """Passes `options`: a `KeyOptions`."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    decorators = [
        click.option("--kek", required=True, type=click.Choice(kinds), help="What keeps the key-encryption key."),
        click.option("--module", help="pkcs11: the token's shared library."),
        click.option("--token", help="pkcs11: the token's label."),
        click.option("--pin-file", type=file, help="pkcs11: the PIN [FREEHOLD_VAULT_PIN_FILE]."),
        click.option("--passphrase-file", type=file, help="passphrase: it [FREEHOLD_VAULT_PASSPHRASE_FILE]."),
        click.option("--address", help="openbao: https://HOST:PORT."),
        click.option("--ca", type=file, help="openbao: the CA that its certificate is checked against (PEM)."),
        click.option("--role-id", help="openbao: of the AppRole."),
        click.option("--secret-id-file", type=file, help="openbao: the secret id [FREEHOLD_OPENBAO_SECRET_ID_FILE]."),
        click.option("--mount", help="openbao: path of the engine [transit]."),
        click.option("--transit-key", default="freehold", show_default=True, help="openbao: name of the transit key."),
    ]

    def decorate(command: F) -> F:
        @wraps(command)
        def call(*args: Any, **values: Any) -> Any:
            given = {field.name: values.pop(field.name) for field in fields(KeyOptions)}
            return command(*args, options=KeyOptions(**given), **values)

        decorated: Any = call
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def _from(file: Path | None, what: str, otherwise: Secret) -> Secret:
    """The file's content, read when it is needed; it is checked as any private file."""
    return otherwise if file is None else lambda: read_secret(file, what)
