"""Whether two machines built the same image: the same packages, of the same versions.

    python3 same.py MANIFEST MANIFEST

A package that its mirror replaced between the two builds is named, and is no failure.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(first: str, second: str) -> int:
    """Compare; the exit code."""
    ours, theirs = (json.loads(Path(file).read_text())["packages"] for file in (first, second))
    differing = sorted(set(ours) ^ set(theirs))
    if differing:
        print(f"not the same image, these packages are in one of the two: {', '.join(differing)}")
        return 1
    for name in sorted(ours):
        if ours[name] != theirs[name]:
            print(f"{name}: {ours[name]} here, {theirs[name]} there")
    print(f"the same image from the same {len(ours)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
