"""The cache: built once, whole or not at all."""

import threading
from pathlib import Path

import pytest

from freehold.provisioning.images.artifacts import Cache, Step, source_digest, tree_digest
from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.os_image import mask_files
from freehold.provisioning.images.tools import run


def test_the_same_inputs_are_built_once(tmp_path: Path) -> None:
    steps: list[Step] = []
    cache = Cache(tmp_path, steps.append)
    paths = [cache.artifact("thing", {"option": 1}, lambda out: out.write_text("made")) for _ in range(2)]
    assert paths[0] == paths[1]
    assert paths[0].read_text() == "made"
    assert [step.state for step in steps] == ["started", "done", "cached"]


def test_other_inputs_are_another_artifact(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    one, two = (cache.artifact("thing", {"option": n}, lambda out: out.write_text("x")) for n in (1, 2))
    assert one != two


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        out.mkdir()
        (out / "half").touch()
        raise ImageBuildError("no")

    cache = Cache(tmp_path)
    with pytest.raises(ImageBuildError):
        cache.artifact("thing", {}, fail)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert cache.artifact("thing", {}, lambda out: out.write_text("good")).read_text() == "good"


def test_a_builder_that_makes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="made nothing"):
        Cache(tmp_path).artifact("thing", {}, lambda out: None)


def test_two_builders_of_the_same_thing_build_it_once(tmp_path: Path) -> None:
    built: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def build(out: Path) -> None:
        built.append(1)
        started.set()
        go_on.wait(5)
        out.touch()

    threads = [threading.Thread(target=Cache(tmp_path).artifact, args=("thing", {}, build)) for _ in range(2)]
    threads[0].start()
    assert started.wait(5)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(5)
    assert built == [1]


def test_comments_cost_no_rebuild_but_code_does(tmp_path: Path) -> None:
    file = tmp_path / "builder.py"
    digests = []
    for text in ("x = 1\n", "# why\nx  =  1\n", "x = 2\n"):
        file.write_text(text)
        digests.append(source_digest(file))
    assert digests[0] == digests[1] != digests[2]


def test_a_tree_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = tree_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    renamed = tree_digest(tmp_path)
    (tmp_path / "b.py").write_text("2")
    assert len({before, renamed, tree_digest(tmp_path)}) == 3


def test_a_missing_tool_names_its_package() -> None:
    with pytest.raises(ImageBuildError, match="apt-get install no-such-tool"):
        run("no-such-tool")


def test_a_failed_tool_is_quoted() -> None:
    with pytest.raises(ImageBuildError, match=r"(?s)code 3.*out of paper"):
        run("sh", "-c", "echo out of paper; exit 3")


def test_a_masked_file_is_a_link_to_nothing_and_must_exist(tmp_path: Path) -> None:
    rules = tmp_path / "usr/lib/udev/rules.d"
    rules.mkdir(parents=True)
    (rules / "70-mouse.rules").touch()
    mask_files(tmp_path, "udev/rules.d", "{}.rules", {"servers have none": ("70-mouse",)})
    assert (tmp_path / "etc/udev/rules.d/70-mouse.rules").readlink() == Path("/dev/null")
    with pytest.raises(ImageBuildError, match="71-mice"):
        mask_files(tmp_path, "udev/rules.d", "{}.rules", {"a name that changed": ("71-mice",)})
