"""``python -m tests.sweep.worker``: judges the model types whose names it reads, a line each; workers.py starts it."""

from __future__ import annotations

import json
import os
import resource
import sys

MEMORY = 7 << 30  # bytes of address space: a type that is not small after all fails alone


def main() -> None:
    """Write one line of JSON for each line read."""
    answers = os.fdopen(os.dup(1), "w")  # what models print goes to the errors
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import torch
    import transformers

    from tests.sweep.judging import Judged, judge

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    for line in sys.stdin:
        try:
            judged = judge(line.strip())
        except Exception as error:
            judged = Judged(line.strip(), reason=f"the sweep itself failed: {type(error).__name__}: {error}")
        json.dump(judged.as_json(), answers)
        answers.write("\n")
        answers.flush()


if __name__ == "__main__":
    main()
