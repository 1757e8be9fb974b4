"""A program that uses a cell: it starts one, writes a file, runs it, and changes what it may reach.

    python program.py PORT

PORT is where a service of this machine listens; the cell knows it as http://10.99.0.5/.
"""

from __future__ import annotations

import asyncio
import sys

import wgcell

PLACE = "10.99.0.5:80"
FETCH = f"""
import sys, urllib.request
try:
    text = urllib.request.urlopen("http://{PLACE}/data.csv", timeout=20).read().decode()
except OSError as error:
    sys.exit(f"refused: {{error}}")
print(sum(int(line.split(",")[1]) for line in text.splitlines()[1:]))
"""
ALLOWED_FOR = 4.0
"""Seconds."""


async def main(port: str) -> int:
    async with wgcell.Cell(name="program", services={PLACE: f"127.0.0.1:{port}"}) as cell:
        print(f"cell {cell.id} runs", flush=True)
        await cell.files.write("fetch.py", FETCH)
        await cell.deny(PLACE)
        before = await cell.exec("python3", "fetch.py")
        print(f"denied: exit code {before.exit_code}", flush=True)
        await cell.allow(PLACE, seconds=ALLOWED_FOR)
        during = await cell.exec("python3", "fetch.py")
        print(f"allowed for {ALLOWED_FOR:g} s: {during.text.strip()}", flush=True)
        async for event in cell.events():
            if event.fields.get("change") == "expired":
                break
        after = await cell.exec("python3", "fetch.py")
        print(f"afterwards: exit code {after.exit_code}", flush=True)
        codes = (before.exit_code, during.exit_code, after.exit_code)
    return 0 if codes == (1, 0, 1) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
