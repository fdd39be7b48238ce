"""All that a lab could leave on its host."""

from pathlib import Path

from freehold_lab import layout, network, rack
from freehold_lab.processes import with_lab_id


def traces(name: str, directory: Path) -> dict[str, object]:
    """Equal before and after, if nothing is left of the lab `name` in `directory`, nor of whoever served it."""
    return {
        "namespaces": network.namespaces(name),
        "processes": with_lab_id(layout.LabPlan(name, directory).lab_id()),
        "commands": [line for line in _command_lines() if str(directory.parent) in line],
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line],
        "registry": (rack.REGISTRY / f"{name}.json").exists(),
        "files": sorted(directory.rglob("*")) if directory.exists() else [],
    }


def _command_lines() -> list[str]:
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((process / "cmdline").read_text(errors="replace").replace("\0", " "))
        except OSError:  # it has just ended
            continue
    return lines
