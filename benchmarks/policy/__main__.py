"""Run the benchmarks: `python -m benchmarks.policy [PART ...]`; parts not named keep their earlier results.

Parts: best_of_n, online, alignment (10 minutes), alignment_shapes. Writes benchmarks/results/policy.json and the tables
in docs/benchmarks.md. Times are seconds of the process's own processors with one thread.
"""

from __future__ import annotations

from benchmarks.parts import Parts, run_parts
from benchmarks.policy.alignment import alignment_rows, other_shape_rows
from benchmarks.policy.best_of_n import best_of_n_rows
from benchmarks.policy.online import online_rows

PARTS: Parts = {
    "best_of_n": lambda _: best_of_n_rows(),
    "online": online_rows,
    "alignment": alignment_rows,
    "alignment_shapes": other_shape_rows,
}


if __name__ == "__main__":
    run_parts("policy", __doc__, PARTS)
