"""`apply` and `diff`: every test reads what a person would see."""

import io
import sys
from pathlib import Path

import pytest
from cli_support import RACK, Answer, Shell


def line_of(text: str, needle: str, nth: int = 0) -> int:
    return [number for number, line in enumerate(text.splitlines(), 1) if needle in line][nth]


def apply(shell: Shell, folder: Path, text: str, *words: str) -> Answer:
    file = folder / "rack.yaml"
    file.write_text(text)
    return shell("apply", "-f", file, *words)


def test_apply_says_what_it_did_and_repeating_it_changes_nothing(shell: Shell, tmp_path: Path) -> None:
    first = apply(shell, tmp_path, RACK.read_text())
    assert first.code == 0
    assert first.out.splitlines()[0] == "Site lab created"
    assert "Server server-1 created" in first.out
    again = apply(shell, tmp_path, RACK.read_text())
    assert again.out.splitlines() == [line.replace("created", "unchanged") for line in first.out.splitlines()]


def test_a_dry_run_changes_nothing_and_founds_no_site(shell: Shell, tmp_path: Path) -> None:
    answer = apply(shell, tmp_path, RACK.read_text(), "--dry-run")
    assert "Server server-1 created (dry run)" in answer.out
    assert not shell.state.exists()


CHANGES = [
    (("bootMethod: http", "bootMetod: http"), "bootMetod", 0,
     "spec.bootMetod: unknown field; did you mean 'bootMethod'?"),
    (("address: 172.30.1.11", "address: 17"), "address: 17", 0,
     "spec.bmc.address: must be text, found a whole number; write it in quotes"),
    (("name: server-2\nspec", "name: server-1\nspec"), "name: server-1", 1,
     "metadata.name: Server 'server-1' is declared twice (first in {file}:{first})"),
    (("image: debian\n", "image: fedora\n"), "image: fedora", 0,
     "spec.image: there is no Image named 'fedora' (known: debian)"),
    (("mac: 52:54:00:12:34:10", "mac: 52:54:00:12:34"), "mac: 52:54:00:12:34", 0,
     "spec.nics[0].mac: '52:54:00:12:34' is not a MAC address such as 52:54:00:12:34:56"),
    (("mac: 52:54:00:12:34:20", "mac: 52:54:00:12:34:10"), "mac: 52:54:00:12:34:10", 1,
     "spec.nics[0].mac: MAC 52:54:00:12:34:10 is used twice"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "needle", "nth", "message"), CHANGES)
def test_a_wrong_document_is_refused_with_file_line_and_path(
    shell: Shell, tmp_path: Path, change: tuple[str, str], needle: str, nth: int, message: str
) -> None:
    text = RACK.read_text().replace(*change, 1)
    answer = apply(shell, tmp_path, text)
    file = tmp_path / "rack.yaml"
    first = line_of(text, "kind: Server") - 1
    assert (answer.code, answer.out) == (2, "")
    wanted = f"{file}:{line_of(text, needle, nth)}: {message.format(file=file, first=first)}"
    assert wanted in answer.err
    as_json = apply(shell, tmp_path, text, "-o", "json")
    assert as_json.code == 2
    assert wanted in as_json.error()["what"]
    assert not (shell.state / "freehold.db").exists() or shell("get", "servers", "-o", "json").json()["items"] == []


def test_a_yaml_bomb_is_refused(shell: Shell, tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(97 + n)}: &{chr(97 + n)} [" + ", ".join([f"*{chr(96 + n)}"] * 9) + "]" for n in range(1, 9)]
    answer = apply(shell, tmp_path, "\n".join(lines))
    assert answer.code == 2
    assert "rack.yaml:1: a: anchors and aliases (& and *) are not allowed; write the value out" in answer.err


def test_bytes_that_are_not_text(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: 1\nb: \xff\n")
    answer = shell("apply", "-f", tmp_path / "x.yaml")
    assert (answer.code, answer.err) == (2, f"freehold: {tmp_path}/x.yaml:2: not UTF-8 text\n")


def test_a_file_that_is_not_there(shell: Shell) -> None:
    answer = shell("apply", "-f", "nowhere.yaml")
    assert answer.code == 2
    assert answer.err.startswith("freehold: there is no file nowhere.yaml\n  what to do: ")


def test_nothing_to_apply(shell: Shell, tmp_path: Path) -> None:
    assert "no documents" in apply(shell, tmp_path, "# nothing\n").err


def test_a_directory_and_standard_input_together(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = RACK.read_text().split("---\n")
    folder = tmp_path / "rack" / "deeper"
    folder.mkdir(parents=True)
    for number, text in enumerate(rest):
        (folder / f"{number}.yaml").write_text(text)
    (folder / "README.md").write_text("not a document")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(first.encode())))
    answer = shell("apply", "-f", "-", "-f", tmp_path / "rack", "-o", "json")
    assert answer.code == 0, answer
    assert len(answer.json()["items"]) == RACK.read_text().count("kind:")


def test_diff_shows_each_path_and_ends_with_3(site: Shell, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text(RACK.read_text())
    assert (site("diff", "-f", file).code, site("diff", "-f", file).out) == (0, "")
    text = RACK.read_text().replace("bootMethod: http", "bootMethod: virtualMedia")
    text = text.replace("factory-word", "another-word").replace("BootMode: Uefi", "BootMode: Uefi\n    Turbo: false")
    file.write_text(text + "---\n{apiVersion: freehold/v1, kind: Policy, metadata: {name: calm}, spec: {}}\n")
    answer = site("diff", "-f", file)
    assert answer.code == 3
    assert answer.out.splitlines() == [
        "~ Server server-1",
        "    spec.bmc.credential.password: changed (********)",
        "    spec.bootMethod: + virtualMedia",
        "    spec.bios.Turbo: + false",
        "+ Policy calm (new)",
    ]
    as_json = site("diff", "-f", file, "-o", "json")
    assert as_json.code == 3
    assert [each["name"] for each in as_json.json()["items"]] == ["server-1", "calm"]
    assert not {"factory-word", "another-word"} & set((answer.out + as_json.out).replace('"', " ").split())


def test_diff_without_a_site_founds_none(shell: Shell) -> None:
    assert "+ Server server-1 (new)" in shell("diff", "-f", RACK).out
    assert not shell.state.exists()


def test_what_get_prints_does_not_replace_a_password_by_its_mask(site: Shell, tmp_path: Path) -> None:
    printed = site("get", "servers", "-o", "yaml").out
    assert "factory-word" not in printed
    answer = apply(site, tmp_path, printed)
    assert answer.code == 2
    assert "spec.bmc.credential.password: is the mask that stands for a password, not a password" in answer.err


def test_what_get_prints_can_be_applied(site: Shell, tmp_path: Path) -> None:
    printed = site("get", "assignments", "-o", "yaml").out
    answer = apply(site, tmp_path, printed)
    assert answer.out.splitlines() == ["Assignment web-1 unchanged", "Assignment web-2 unchanged"]


def test_delete_takes_out_what_nothing_needs(site: Shell) -> None:
    refused = site("delete", "server", "server-1")
    assert refused.code == 1
    assert "Server server-1 is in use" in refused.err
    assert site("delete", "assignment", "web-1").out == "Assignment web-1 deleted\n"
    assert site("delete", "srv", "server-1", "-o", "json").json()["action"] == "deleted"
    assert "there is no Server named 'server-1'" in site("delete", "server", "server-1").err
