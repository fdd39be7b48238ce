"""The documentation holds what it says: links lead somewhere, commands exist, and nothing belongs to one machine."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from freehold.interfaces.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
# A command in `backticks`, or a line of an indented block. The word behind `freehold` is a command of its own.
INLINE = re.compile(r"`(?:sudo )?(?:\.venv/bin/)?(freehold [^`]+)`")
BLOCK = re.compile(r"^ {4}(freehold .+?)\s*&?(?: +#.*)?$", re.MULTILINE)
GROUPS = {
    "depot": {"init", "import", "list", "sign", "publish", "verify", "mirror", "rotate", "withdraw", "downgrade"},
    "evidence": {"log", "export"},
    "image": {"build", "import", "list", "replace-key"},
    "vault": {"init", "status", "rekey", "recover", "audit"},
    "secureboot": {"list", "revoke", "rotate", "image"},
    "pki": {"ceremony", "request", "install", "list", "revoke", "crl", "replace"},
}
LAB = {"up", "down", "status", "fault", "console", "power", "ssh", "exec", "wan"}
# Outside addresses that a reader may be sent to. A package index or a mirror is never one of them.
HOSTS = {"freehold.dev", "github.com"}
FOREIGN = re.compile(
    r"(?<![\w.~*/-])/(?:work|root|home|Users|mnt|srv)(?:/|\b)|(?i:index-url|://[^/\s]*(?:pypi|mirror|proxy)[^/\s]*)"
)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """The fragment of each heading, as GitHub makes it."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[str]:
    text = page.read_text()
    yield from INLINE.findall(text)
    for line in BLOCK.findall(text):
        yield from (part.strip() for part in line.split("&&") if part.strip().startswith("freehold "))


@pages
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert target.exists(), f"{link} leads nowhere"
        assert not fragment or fragment in anchors(target), f"{link}: {target.name} has no such heading"


@pages
def test_every_command_that_is_named_exists(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line.replace("…", ""))
        if len(words) < 2 or words[1].startswith("-"):
            continue
        names = words[1].split("/")
        assert set(names) <= set(COMMANDS), line
        sub = words[2] if len(words) > 2 else ""
        if words[1] == "lab" and sub and not sub.startswith("-"):
            assert sub in LAB, line
        elif words[1] in GROUPS and sub:
            assert sub in GROUPS[words[1]], line


def test_the_readme_names_every_command() -> None:
    named = {line.split()[1] for line in commands(ROOT / "README.md")}
    assert set(COMMANDS) <= named


def test_every_option_in_the_readme_exists() -> None:
    """Options of our own commands; the lab is a program of its own and has its own tests."""
    for line in commands(ROOT / "README.md"):
        words = shlex.split(line.replace("…", ""))
        command = cli.get_command(click.Context(cli), words[1]) if words[1] != "lab" else None
        if isinstance(command, click.Group) and len(words) > 2:
            command = command.commands[words[2]]
        known = {option for each in command.params for option in each.opts} if command else set()
        assert command is None or {word for word in words if word.startswith("-")} <= known | {"--help"}, line


@pages
def test_nothing_in_it_belongs_to_one_machine(page: Path) -> None:
    text = page.read_text()
    assert not (found := FOREIGN.search(text)), f"{page.name}: {found and found.group()}"
    for address in re.findall(r"https?://[^\s`)<>\"']+", text):
        host = urlsplit(address).hostname or ""
        assert host in HOSTS or host.startswith(("172.30.", "127.0.0.1")) or not re.search(r"[a-z]\.[a-z]", host), (
            address
        )


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    records = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert all(f"decisions/{name}" in index for name in records)
    assert [name[:4] for name in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
