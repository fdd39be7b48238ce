"""The table of commands: each one is there, has help, and the help ends with an example."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cli_support import Shell

import freehold.interfaces.cli
from freehold.interfaces.cli.lab import LAB_COMMANDS
from freehold.interfaces.cli.main import COMMANDS, cli

LAB = (sys.executable, "-m", "freehold_lab")
FOLDER = Path(freehold.interfaces.cli.__file__).parent


def commands(name: str) -> Iterator[tuple[str, click.Command]]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    yield name, command
    if isinstance(command, click.Group):
        yield from ((f"{name} {each}", found) for each, found in command.commands.items())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_there_and_its_help_ends_with_an_example(name: str) -> None:
    module = FOLDER / f"{COMMANDS[name][0]}.py"
    assert module.exists(), f"{name}: {module.name} is missing"
    for path, command in commands(name):
        text = (command.help or "").strip()
        _, found, example = text.partition("Example:")
        assert found, path
        lines = example.strip().splitlines()
        assert lines, path
        assert all("freehold" in line for line in lines), path


@pytest.mark.parametrize("name", LAB_COMMANDS)
@pytest.mark.slow
def test_every_command_of_the_lab_has_an_example_in_our_words(name: str) -> None:
    text = subprocess.run([*LAB, name, "--help"], check=True, capture_output=True, text=True).stdout
    assert text.startswith(f"usage: freehold lab {name}")
    _, found, examples = text.partition("Example:\n")
    assert found
    assert all(line.startswith(f"  freehold lab {name}") for line in examples.strip("\n").splitlines())


def test_a_failure_of_the_lab_is_told_as_every_other_failure(tmp_path: Path) -> None:
    command = [*LAB, "status", "--dir", str(tmp_path)]
    plain = subprocess.run(command, check=False, capture_output=True, text=True)
    assert plain.returncode == 1
    assert plain.stderr.startswith("freehold: ")
    assert "\n  what to do: " in plain.stderr
    told = subprocess.run([*command, "-o", "json"], check=False, capture_output=True, text=True)
    assert set(json.loads(told.stderr)["error"]) == {"what", "server", "expected", "remedy"}
    assert told.stdout == ""


def test_the_lab_has_the_commands_that_we_complete() -> None:
    text = subprocess.run([*LAB, "--help"], check=True, capture_output=True, text=True).stdout
    assert re.findall(r"^    (\w+)  ", text, re.MULTILINE) == list(LAB_COMMANDS)


ANSWER = [
    ("up", "--dir", "a b"),
    ("down",),
    ("status",),
    ("fault", "list"),
    ("power", "server-1", "on"),
    ("wan", "cut"),
]


@pytest.mark.parametrize("words", ANSWER, ids=lambda words: words[0])
@pytest.mark.slow
def test_every_command_of_the_lab_that_has_an_answer_has_it_in_json(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run([*LAB, *words, "-o", "json"], check=False, capture_output=True, text=True, cwd=tmp_path)
    if done.returncode == 0:
        assert words == ("down",)
        assert json.loads(done.stdout) == {"name": "lab", "found": False}
    else:
        assert json.loads(done.stderr)["error"]["what"]


@pytest.mark.parametrize("words", [("console", "server-1"), ("ssh", "server-1"), ("exec", "client")])
@pytest.mark.slow
def test_a_terminal_of_the_lab_has_no_json_and_says_so(words: tuple[str, ...]) -> None:
    command = [*LAB, *words, "-o", "json", "--", "ls", "-o", "table"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr)["error"]["what"] == f"{words[0]} passes on what it runs as it is: it has no JSON"
    assert (
        "--output" not in subprocess.run([*LAB, words[0], "--help"], check=True, capture_output=True, text=True).stdout
    )


@pytest.mark.parametrize("words", [("nonsense",), ("up", "--servers", "x"), ("power", "server-1", "sideways"), ()])
@pytest.mark.slow
def test_wrong_usage_of_the_lab_is_2_and_in_json_it_is_an_object(words: tuple[str, ...]) -> None:
    plain = subprocess.run([*LAB, *words], check=False, capture_output=True, text=True)
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr.startswith("freehold: ")
    assert "\n  what to do: See `freehold lab" in plain.stderr
    told = subprocess.run([*LAB, *words, "--output=json"], check=False, capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (2, "")
    assert json.loads(told.stderr)["error"]["remedy"].startswith("See `freehold lab")


def completed(words: str, directory: Path) -> list[str]:
    """What bash offers behind these words, asked as bash asks."""
    asks = {"_FREEHOLD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    command = [sys.executable, "-c", "from freehold.interfaces.cli.main import cli; cli(prog_name='freehold')"]
    done = subprocess.run(command, env=os.environ | asks, capture_output=True, text=True, check=False, cwd=directory)
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("freehold get ser", ["servers"]),
        ("freehold delete pol", ["policies"]),
        ("freehold lab ", list(LAB_COMMANDS)),
        ("freehold lab co", ["console"]),
        ("freehold lab console ", ["server-1", "server-2"]),
        ("freehold lab power server-2 re", ["reset"]),
        ("freehold lab fault bmc-slow --dir rack ", ["server-9"]),
        ("freehold lab exec cl", ["client"]),
        ("freehold lab up ", []),
    ],
)
@pytest.mark.slow
def test_completion_offers_kinds_and_the_lab_s_words(words: str, offered: list[str], tmp_path: Path) -> None:
    for name in ("lab/servers/server-1", "lab/servers/server-2", "rack/servers/server-9"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lab" / "lab.json").write_text('{"namespaces": {"controller": "fh-lab-controller", "client": "x"}}')
    assert completed(words, tmp_path) == offered


OURS = [name for name, (module, _, _) in COMMANDS.items() if module != "lab"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_command_can_answer_in_json(name: str) -> None:
    for path, command in commands(name):
        if not isinstance(command, click.Group):
            outputs = [each for each in command.params if each.name == "output"]
            assert outputs, path
            assert isinstance(outputs[0].type, click.Choice)
            assert "json" in outputs[0].type.choices, path


def test_the_help_names_every_command_and_the_exit_codes_of_the_readme(shell: Shell) -> None:
    text = shell("--help").out
    assert all(f"  {name} " in text for name in COMMANDS)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    documented = dict(re.findall(r"^\| (\d+) \| (.+) \|$", readme.partition("| exit code |")[2], re.MULTILINE))
    shown = dict(re.findall(r"^ +(\d+)  (.+(?:\n {6,}\D.+)*)$", text.partition("Exit codes:")[2], re.MULTILINE))
    assert shown.keys() == documented.keys() == {"0", "1", "2", "3", "130"}
    for code, words in documented.items():
        assert set(re.findall(r"`(.+?)`", words)) <= set(re.findall(r"`(.+?)`", shown[code])), code
    assert "`prove`: something left" in " ".join(shown["3"].split())


def test_help_imports_no_command() -> None:
    script = (
        "import sys; sys.argv = ['freehold', '--help']\n"
        "from freehold.interfaces.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'sqlalchemy', 'aiohttp', 'yaml', 'cryptography'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("words", [("nonsense",), ("get", "nonsense"), ("get", "servers", "--limit", "0")])
def test_wrong_usage_is_2_and_in_json_it_is_an_object(shell: Shell, words: tuple[str, ...]) -> None:
    assert shell(*words).code == 2
    answer = shell(*words, "--output", "json")
    assert (answer.code, answer.out) == (2, "")
    assert answer.error()["what"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: Shell, name: str) -> None:
    assert "_FREEHOLD_COMPLETE" in shell("completion", name).out
    assert "_FREEHOLD_COMPLETE" in shell("completion", name, "-o", "json").json()["script"]


def test_console_outside_a_lab_names_the_bmc(site: Shell, tmp_path: Path) -> None:
    answer = site("console", "server-1")
    assert answer.code == 1
    assert answer.err == (
        "freehold: server server-1: serial-over-LAN is not there yet: Freehold cannot attach to the console of a "
        "server outside a lab\n"
        "  what to do: use the console of its BMC at https://172.30.1.11/, or in a lab: --lab DIR\n"
    )
    assert "there is no lab in" in site("console", "server-1", "--lab", tmp_path).err


def test_console_in_a_lab_becomes_the_labs_console(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab.json").write_text("{}")
    called: list[list[str]] = []

    def execv(_program: str, arguments: list[str]) -> None:
        called.append(arguments[1:])
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", execv)
    shell("console", "server-1", "--lab", tmp_path)
    assert called == [["-m", "freehold_lab", "console", "server-1", "--dir", str(tmp_path)]]
