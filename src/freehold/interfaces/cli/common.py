"""What every command shares: the state directory, the output format, and how tables and JSON are printed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from freehold.model.errors import FreeholdError

if TYPE_CHECKING:
    from freehold.orchestration.store import Store

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def state_option(command: F) -> F:
    return click.option(
        "--state",
        "state",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="FREEHOLD_STATE",
        default=Path("state"),
        show_default=True,
        help="State directory of the site (FREEHOLD_STATE).",
    )(command)


def output_option(*more: str) -> Callable[[F], F]:
    return click.option(
        "-o",
        "--output",
        "output",
        type=click.Choice(["table", *more, "json"]),
        default="table",
        show_default=True,
        help="How to print the answer.",
    )


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, also one that cannot be understood."""
    return any(word in ("--output=json", "-ojson") for word in words) or any(
        word in ("--output", "-o") and value == "json" for word, value in pairwise(words)
    )


@asynccontextmanager
async def site_store(state: Path) -> AsyncIterator["Store"]:
    """The store of a site that is there already. Looking must not found a site: a mistyped --state is an error."""
    path = state / "freehold.db"
    if not path.exists():
        raise FreeholdError(
            f"there is no site in {state}",
            expected=f"the store {path}",
            remedy="say where it is with --state (or FREEHOLD_STATE), or begin one with `freehold apply -f FILE`",
        )
    from freehold.orchestration.store import Store

    store = await Store.open(path)
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def exits(code: int, *errors: type[FreeholdError]) -> Iterator[None]:
    """The process ends with `code` if one of these errors ends it (`main` looks for `exit_code`)."""
    try:
        yield
    except errors as error:
        vars(error)["exit_code"] = code
        raise


def show_json(value: Any) -> None:
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=False))


def show_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell; the last one is not padded."""
    cells = [[printable(str(cell)) for cell in row] for row in [headers, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_page(name: str, items: Sequence[Any], following: object, output: str) -> None:
    """JSON: `{"items": […], "next": …}`. Otherwise: a word on stderr that there is more, and how to get it."""
    if output == "json":
        show_json({"items": list(items), "next": following})
    elif following is not None:
        click.echo(f"there is more: go on with {name} {following}", err=True)


def printable(text: str) -> str:
    """`text` in one line without control characters: what a BMC or an agent says must not command the terminal."""
    text = " ".join(text.split("\n"))
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


def moment(at: float | None) -> str:
    """`2026-01-31 12:00:00Z`; `-` for None."""
    return "-" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%SZ}"


def since(at: float | None, now: float | None = None) -> str:
    """The age of a moment; `-` for None."""
    return "-" if at is None else age((time.time() if now is None else now) - at)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def age(seconds: float) -> str:
    """`42s`, `7m`, `3h`, `2d`: as kubectl says it."""
    for limit, unit, size in ((120, "s", 1), (7200, "m", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{int(max(seconds, 0) // size)}{unit}"
    return f"{int(seconds // 86400)}d"
