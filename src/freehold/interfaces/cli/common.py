"""What every command shares: the state directory, the output format, and how tables and JSON are printed."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

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


def show_json(value: Any) -> None:
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=False))


def show_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell; the last one is not padded."""
    cells = [[str(cell) for cell in row] for row in [headers, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def age(seconds: float) -> str:
    """`42s`, `7m`, `3h`, `2d`: as kubectl says it."""
    for limit, unit, size in ((120, "s", 1), (7200, "m", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{int(max(seconds, 0) // size)}{unit}"
    return f"{int(seconds // 86400)}d"
