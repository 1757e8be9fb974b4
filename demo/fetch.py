"""Scenario 1, in the guest: fetch data through the tunnel, leave a result."""

import csv
import io
import pathlib
import urllib.request

text = urllib.request.urlopen("http://10.99.0.5/data.csv", timeout=20).read().decode()
rows = list(csv.DictReader(io.StringIO(text)))
total = sum(int(row["value"]) for row in rows)
pathlib.Path("results").mkdir(exist_ok=True)
pathlib.Path("results/total.txt").write_text(f"{total}\n")
print(f"fetched {len(rows)} rows, total {total}")
