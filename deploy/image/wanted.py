"""Print what the server needs, so that an image can hold it in a layer below the project's own files."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]


def wanted(lines: list[str]) -> list[str]:
    """The requirements in `lines`, with the project's own extras in full."""
    found = []
    for line in lines:
        own = re.fullmatch(rf"{re.escape(project['name'])}\[([\w,\s-]+)\]", line)
        found += [one for name in own[1].split(",") for one in wanted(extras[name.strip()])] if own else [line]
    return found


print("\n".join(wanted([*project["dependencies"], f"{project['name']}[server]"])))
