"""Each check of the PTX interpreter on the smallest kernel that breaks its rule, and on a twin that keeps it.

Covered: bounds, alignment, values nobody wrote, races (in a block, in a warp, between blocks, atomics, the read-only
path), barriers, warp operations, launches; votes, shuffles, matches, atomics and reducing barriers by their results.
Not covered: the real kernels (test_ptx.py), and bugs planted into them (test_ptx_catches.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from cuda.ptx.faults import Checker, Fault
from cuda.ptx.launch import Device
from cuda.written_ptx import kernel, launch, uploaded
from tests.support.patterns import Array

SHARED = "    .shared .align 16 .b8 tile[256]; .shared .align 16 .b8 other[256];\n"
START = "    mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.u32 %r3, tile; add.u32 %r4, %r3, %r2;\n"
GLOBAL = "    ld.param.u64 %d1, [p0]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.u64 %d3, %d1, %d2;\n"


@dataclass(frozen=True)
class Broken:
    """A kernel that breaks a rule, what must find it and say, and the edit that mends it."""

    checker: Checker
    says: str
    body: str
    mended: tuple[str, str]
    blocks: int = 1
    threads: int = 64


BROKEN = {
    "one past the end": Broken(
        "bounds",
        "4 bytes of global memory .* 0 bytes after the end of array",
        GLOBAL + "ld.global.u32 %r5, [%d3+4];",
        ("[%d3+4]", "[%d3]"),
    ),
    "half of a vector past the end": Broken(
        "bounds",
        "accesses 16 bytes of global",
        GLOBAL
        + "mul.wide.u32 %d4, %r1, 16; add.u64 %d4, %d4, %d1; setp.gt.u32 %p1, %r1, 16; @%p1 bra E; ld.global.v4.f32 {%f1,%f2,%f3,%f4}, [%d4]; E:",
        ("setp.gt.u32 %p1, %r1, 16", "setp.gt.u32 %p1, %r1, 15"),
    ),
    "from one shared variable into the next": Broken(
        "bounds",
        "0 bytes after the end of tile",
        SHARED + START + "st.shared.u32 [%r4+4], %r1;",
        ("[%r4+4]", "[%r4]"),
    ),
    "a misaligned vector": Broken(
        "alignment",
        "accesses 16 bytes at .* no multiple of 16",
        GLOBAL + "ld.global.v4.u32 {%r5,%r6,%r7,%r8}, [%d1+8];",
        ("[%d1+8]", "[%d1+16]"),
    ),
    "an address nobody wrote": Broken(
        "uninitialised",
        "an address depends on a value nobody wrote",
        GLOBAL + "ld.global.u32 %r5, [%d9];",
        ("%d9", "%d3"),
    ),
    "a branch nobody decided": Broken(
        "uninitialised",
        "whether bra is done",
        GLOBAL + "setp.eq.u32 %p1, %r9, 0; @%p1 bra E; E:",
        ("%r9", "%r1"),
    ),
    "shared memory read before it was written": Broken(
        "uninitialised",
        r"what is stored .* which read unwritten memory at \[kernel k, PTX line",
        SHARED + START + GLOBAL + "ld.shared.u32 %r5, [%r4]; add.u32 %r5, %r5, 1; st.global.u32 [%d3], %r5;",
        ("ld.shared.u32 %r5, [%r4]", "st.shared.u32 [%r4], %r1; ld.shared.u32 %r5, [%r4]"),
    ),
    "read after write without a barrier": Broken(
        "race",
        r"thread \(0, 0, 0\) meets .* thread \(1, 0, 0\) in shared memory .*inside tile, byte 4.* wrote there",
        SHARED + START + "xor.b32 %r5, %r4, 4; st.shared.u32 [%r4], %r1; ld.shared.u32 %r6, [%r5];",
        ("ld.shared.u32 %r6", "bar.sync 0; ld.shared.u32 %r6"),
    ),
    "write after read without a barrier": Broken(
        "race",
        "which read there",
        SHARED
        + START
        + "st.shared.u32 [%r4], %r1; bar.sync 0; xor.b32 %r5, %r4, 128; ld.shared.u32 %r6, [%r5]; st.shared.u32 [%r4], %r6;",
        ("st.shared.u32 [%r4], %r6", "bar.sync 0; st.shared.u32 [%r4], %r6"),
    ),
    "two values at one place": Broken(
        "race", "which wrote there", SHARED + START + "st.shared.u32 [tile], %r1;", ("[tile], %r1", "[tile], 7")
    ),
    "atomics beside plain stores": Broken(
        "race",
        "nothing orders them",
        SHARED + START + "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [tile], 0; atom.shared.add.u32 %r5, [tile], 1;",
        ("atom.shared", "bar.sync 0; atom.shared"),
    ),
    "a warp's order across warps": Broken(
        "race",
        "which wrote there",
        SHARED + START + "st.shared.u32 [%r4], %r1; bar.warp.sync -1; xor.b32 %r5, %r4, 128; ld.shared.u32 %r6, [%r5];",
        ("xor.b32 %r5, %r4, 128", "xor.b32 %r5, %r4, 64"),
    ),
    "two blocks at one place": Broken(
        "race",
        r"block \(0, 0, 0\) .* meets block \(1, 0, 0\)",
        GLOBAL + "mov.u32 %r5, %ctaid.x; st.global.u32 [%d3], %r5;",
        ("st.global.u32 [%d3], %r5", "red.global.add.u32 [%d3], %r5"),
        blocks=2,
    ),
    "read-only data that is written": Broken(
        "race",
        "which read there",
        GLOBAL + "ld.global.nc.u32 %r5, [%d3]; st.global.u32 [%d3], %r5;",
        (".nc", ""),
    ),
    "a barrier that some have left": Broken(
        "barrier",
        r"waits at a barrier for .* thread \(0, 0, 0\), which ended",
        "    mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0; @%p1 ret; bar.sync 0;",
        ("@%p1 ret;", ""),
    ),
    "two barriers that wait for each other": Broken(
        "barrier",
        "others of its block wait at",
        "    mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 32; @%p1 bra A; bar.sync 0; bra E; A: bar.sync 0; E:",
        ("setp.lt.u32 %p1, %r1, 32", "setp.lt.u32 %p1, %r1, 64"),
    ),
    "a vote for which one lane never comes": Broken(
        "warp",
        "waits for lanes of its warp that never come",
        "    mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 3; @%p1 bra B; vote.sync.ballot.b32 %r2, 1, -1; B: bar.sync 0;",
        ("@%p1 bra B;", ""),
    ),
    "a vote that does not name its caller": Broken(
        "warp",
        "is not among the lanes that it names",
        "    vote.sync.ballot.b32 %r2, 1, 65535;",
        ("65535", "-1"),
    ),
    "a shuffle from a lane that is not there": Broken(
        "uninitialised",
        "what is stored depends",
        GLOBAL
        + "and.b32 %r6, %r1, 31; setp.gt.u32 %p1, %r6, 15; @%p1 bra E; shfl.sync.bfly.b32 %r5, %r1, 16, 31, 65535; st.global.u32 [%d3], %r5; E:",
        ("bfly.b32 %r5, %r1, 16", "bfly.b32 %r5, %r1, 8"),
    ),
    "a loop without an end": Broken(
        "endless", "more than", "A: mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 99; @%p1 bra A;", ("99", "0"), threads=32
    ),
    "more threads than the kernel takes": Broken("launch", "1025 threads", "", ("", ""), threads=1025),
}


def run(broken: Broken, body: str, threads: int) -> None:
    device = Device()
    arguments = [uploaded(device, np.arange(64, dtype=np.uint32))] if "p0" in body else []
    text = kernel(body, ".param .u64 p0" if arguments else "")
    launch(text, blocks=broken.blocks, threads=threads, arguments=arguments, device=device)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found_and_the_mended_twin_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuda.ptx.machine.MOST_TURNS", 2000)
    broken = BROKEN[name]
    with pytest.raises(Fault, match=broken.says) as caught:
        run(broken, broken.body, broken.threads)
    assert caught.value.checker == broken.checker
    assert "k" in str(caught.value)
    assert broken.body.count(broken.mended[0]) == 1 or broken.mended == ("", "")
    run(broken, broken.body.replace(*broken.mended), min(broken.threads, 1024))


def test_output_that_was_never_written_cannot_be_copied_back() -> None:
    device = Device()
    address = device.memory.allocate(16)
    device.memory.write(address, b"12345678")
    with pytest.raises(Fault, match="8 of 16 bytes") as caught:
        device.memory.read(address, 16)
    assert caught.value.checker == "uninitialised"
    device.memory.free(address)
    with pytest.raises(Fault, match="a copy of 8 bytes"):
        device.memory.read(address, 8)
    with pytest.raises(Fault, match="no allocation"):
        device.memory.free(address)


def answers(body: str, *, threads: int = 64, blocks: int = 1) -> Array:
    """What each thread leaves in %r20."""
    device = Device()
    out = device.memory.allocate(4 * threads * blocks)
    place = "    mov.u32 %r21, %ctaid.x; mov.u32 %r22, %ntid.x; mov.u32 %r1, %tid.x; mad.lo.u32 %r23, %r21, %r22, %r1;"
    end = " ld.param.u64 %d1, [p0]; mul.wide.u32 %d2, %r23, 4; add.u64 %d1, %d1, %d2; st.global.u32 [%d1], %r20;"
    text = kernel(place + body + end, ".param .u64 p0")
    launch(text, blocks=blocks, threads=threads, arguments=[out], device=device)
    return np.frombuffer(device.memory.read(out, 4 * threads * blocks), np.uint32)


def test_votes_shuffles_and_matches_stay_in_their_warp() -> None:
    lanes = np.arange(64)
    ballot = answers(" setp.gt.u32 %p1, %r1, 40; vote.sync.ballot.b32 %r20, %p1, -1;")
    assert ballot.tolist() == [0] * 32 + [0xFFFFFFFF & (-1 << 9)] * 32
    for name, expected in (("any", [0, 1]), ("all", [0, 0]), ("uni", [1, 0])):
        got = answers(f" setp.gt.u32 %p1, %r1, 40; vote.sync.{name}.pred %p2, %p1, -1; selp.u32 %r20, 1, 0, %p2;")
        assert got.tolist() == [expected[0]] * 32 + [expected[1]] * 32, name
    shuffled = {
        "up.b32 %r20|%p1, %r1, 3, 0": np.where(lanes % 32 >= 3, lanes - 3, lanes),
        "down.b32 %r20, %r1, 5, 31": np.where(lanes % 32 < 27, lanes + 5, lanes),
        "bfly.b32 %r20, %r1, 4, 31": lanes ^ 4,
        "idx.b32 %r20, %r1, 7, 31": lanes // 32 * 32 + 7,
        "down.b32 %r20, %r1, 4, 6175": np.where(lanes % 8 < 4, lanes + 4, lanes),  # segments of 8 lanes
    }
    for name, expected in shuffled.items():
        assert answers(f" shfl.sync.{name}, -1;").tolist() == expected.tolist(), name
    matched = answers(" and.b32 %r2, %r1, 7; match.any.sync.b32 %r20, %r2, -1;")
    assert matched.tolist() == [0x01010101 << lane % 8 for lane in lanes]
    assert answers(" redux.sync.max.u32 %r20, %r1, -1;").tolist() == [31] * 32 + [63] * 32


def test_lanes_that_part_meet_again_at_a_vote() -> None:
    body = " and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 0; mov.u32 %r3, 0; @%p1 bra A; mov.u32 %r3, 5; A:"
    assert answers(f"{body} setp.eq.u32 %p2, %r3, 5; vote.sync.ballot.b32 %r20, %p2, -1;").tolist() == [0xAAAAAAAA] * 64


def test_barriers_reduce_over_the_block() -> None:
    body = " setp.gt.u32 %p1, %r1, 40; "
    assert answers(f"{body} bar.red.popc.u32 %r20, 0, %p1;", blocks=2).tolist() == [23] * 128
    for name, expected in (("or", 1), ("and", 0)):
        got = answers(f"{body} bar.red.{name}.pred %p2, 0, %p1; selp.u32 %r20, 1, 0, %p2;")
        assert got.tolist() == [expected] * 64


def test_atomics_take_turns_in_some_order() -> None:
    shared = " .shared .align 4 .b8 cell[4]; setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [cell], 100; bar.sync 0; "
    found = answers(f"{shared} atom.shared.add.u32 %r20, [cell], 2;")
    assert sorted(found.tolist()) == list(range(100, 228, 2))
    assert found.tolist() != sorted(found.tolist())  # no kernel may count on the order of threads
    last = answers(
        f"{shared} atom.shared.max.u32 %r2, [cell], %r23; bar.sync 0; ld.shared.u32 %r20, [cell];", threads=128
    )
    assert last.tolist() == [127] * 128
    exchanged = answers(f"{shared} atom.shared.exch.b32 %r20, [cell], %r1;")
    assert len(set(exchanged.tolist())) == 64
    won = answers(f"{shared} atom.shared.cas.b32 %r20, [cell], 100, 7;")
    assert sorted(won.tolist()) == [7] * 63 + [100]
    wrapped = answers(f"{shared} atom.shared.inc.u32 %r2, [cell], 102; bar.sync 0; ld.shared.u32 %r20, [cell];")
    assert wrapped.tolist() == [61] * 64  # 101, 102, 0, 1, ...


def test_local_and_generic_memory_belong_to_a_thread_and_a_block() -> None:
    body = """ .local .align 16 .b8 mine[16]; .shared .align 16 .b8 tile[512];
    mov.u64 %d5, mine; cvta.local.u64 %d6, %d5; st.u32 [%d6+4], %r23; ld.local.u32 %r2, [mine+4];
    mov.u64 %d7, tile; cvta.shared.u64 %d8, %d7; mul.wide.u32 %d9, %r1, 4; add.u64 %d9, %d9, %d8;
    st.u32 [%d9], %r2; ld.u32 %r20, [%d9];"""
    assert answers(body, blocks=3).tolist() == list(range(192))
