"""Compare the lower bounds of pyproject.toml with the tested versions, pinned in constraints-lowest.txt.

python .ci/check_lowest.py
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BOUND = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\d.]+)")


def release(version: str) -> str:
    """Drop trailing zeros: 2.13 and 2.13.0 are the same release."""
    return re.sub(r"(\.0)+$", "", version)


def differences() -> list[str]:
    """List the requirements of the tests whose lower bound is not the pinned version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    found = []
    for requirement in [*project["dependencies"], *extras["accelerate"], *extras["gguf"], *extras["test"]]:
        bound = BOUND.fullmatch(requirement)
        if bound is None:
            found.append(f"pyproject.toml: {requirement!r} has no lower bound, such as 'numpy>=2.1.3'")
        elif release(pinned.get(bound["name"], "")) != release(bound["version"]):
            found.append(f"{requirement!r} is not the tested {bound['name']}=={pinned.get(bound['name'])}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(differences()) or None)
