"""What is measured of captures: forwards of a model, and calls of functions and modules, each with and without one open."""

from __future__ import annotations

from typing import Any

from benchmarks.capturing.world import CALLS, N_CALLS, ViTWorld, judged
from benchmarks.core.case import OURS, TORCH, Case, Judged, nothing

HEARD, KEPT = f"{OURS}, heard and nothing kept", f"{OURS}, queries and keys kept"
EAGER = f"{TORCH}, softmax written out and weights returned"
ALONE = f"{TORCH}, no capture"


def returned(world: Any) -> Judged:
    """Each contender's answer is its output, and what it kept."""
    return Judged(lambda contender, answer: judged(world, contender, answer))


def counted(_world: Any) -> Judged:
    """A loop answers how many calls it made."""
    return Judged(lambda _contender, answer: answer == N_CALLS)


def n_weights(world: ViTWorld) -> int:
    """Bytes of the weights of all layers."""
    return 4 * world.size.blocks * world.size.heads * (world.size.patches + 1) ** 2 * world.size.pictures


CASES = (
    Case(
        "a forward",
        (),
        nothing,
        {
            OURS: "patterns(model, picture)",
            KEPT: "queries_and_keys(model, picture)",
            HEARD: "heard(model, picture)",
            ALONE: "alone(model, picture)",
            EAGER: "written_out(eager, picture)",
        },
        returned,
        work=n_weights,
        limit=ALONE,
        dtypes=("float32",),
        checks=1,
        about="Opening and closing the capture is counted. Ours keeps float32 patterns of every layer.",
    ),
    *(
        Case(
            name,
            (),
            nothing,
            {OURS: f"with_capture({loop})", TORCH: f"{loop}()"},
            counted,
            dtypes=("float32",),
            kinds=(CALLS,),
            checks=1,
            questions=lambda _world: N_CALLS,
            about="A loop of calls; ours runs it under a capture that is open and hears none of them.",
        )
        for name, loop in (
            ("a tensor operation", "operations"),
            ("a call of a module", "modules"),
            ("a call of a module that looks like attention", "lookalikes"),
        )
    ),
)
