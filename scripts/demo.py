"""`make demo`: classify the sample reviews with the sample model, show what came out, say what next."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = "demo-output"
#: The broken line among the sample reviews; a run of your own would exit with 65 to tell you.
ROW_ERRORS = 1
COMMAND = [
    "batchinfer", "run", "sample_data/reviews.jsonl", "--model", "sample_data/tiny-sentiment",
    "--output", OUTPUT, "--max-errors", str(ROW_ERRORS),
]  # fmt: skip

NEXT = f"""
What to try next (with .venv/bin on your PATH):
  batchinfer status {OUTPUT}
  batchinfer run sample_data/reviews.csv -m sample_data/tiny-sentiment -o csv-output --max-errors 1
  batchinfer run --config configs/embeddings.yaml
  batchinfer run YOUR_FILE.jsonl -m YOUR_MODEL -o out --text-column YOUR_COLUMN
Kill any of them, then: batchinfer resume OUT"""


def main() -> int:
    """Run the demo; return the exit code of its run."""
    shutil.rmtree(ROOT / OUTPUT, ignore_errors=True)
    print("$", " ".join(COMMAND), flush=True)
    done = subprocess.run([sys.executable, "-m", *COMMAND], cwd=ROOT)
    if done.returncode:
        return done.returncode
    columns = ["_row", "text", "predicted_label", "predicted_score", "_num_tokens", "_error"]
    shard = sorted((ROOT / OUTPUT / "data").glob("*.parquet"))[0]
    print(f"\nThe first rows of {OUTPUT}/data, and the one that could not be read:")
    rows = pq.read_table(shard, columns=columns).to_pylist()
    for row in [*rows[:8], *(row for row in rows if row["_error"])]:
        text = " ".join((row["text"] or "").split())
        answer = row["_error"] or f"{row['predicted_label']} {row['predicted_score']:.2f}"
        print(f"  {row['_row']:>4}  {text[:60]:<60}  {answer[:70]}")
    print(NEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
