"""Run the benchmarks: `python -m benchmarks.data [PART ...]`; parts not named keep their earlier results.

Parts: pipeline, composition, encode, order, slots, fetch, threads, memory; and, only when named, million (memory at
1,000,000 pairs, for which 8 GB of disk are needed). Writes benchmarks/results/data.json and the tables in
docs/benchmarks.md. The material is made once, in the cache folder; times are seconds of a process's own processors with
one thread, so that other work on the machine disturbs them less.
"""

from __future__ import annotations

from benchmarks.data.pipeline import composition_rows, pipeline_rows
from benchmarks.data.resources import memory_rows, thread_rows
from benchmarks.data.stages import encode_rows, fetch_rows, order_rows, slot_rows
from benchmarks.parts import Parts, run_parts

PARTS: Parts = {
    "pipeline": pipeline_rows,
    "composition": composition_rows,
    "encode": encode_rows,
    "order": order_rows,
    "slots": slot_rows,
    "fetch": fetch_rows,
    "threads": thread_rows,
    "memory": memory_rows,
}
ASKED: Parts = {"million": lambda folder: memory_rows(folder, (100_000, 1_000_000))}

if __name__ == "__main__":
    run_parts("data", __doc__, PARTS, ASKED)
