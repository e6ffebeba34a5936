"""A device for tests that interprets PTX, the assembly that nvcc emits, in Python and NumPy.

What it models. One lane of a NumPy array per thread, blocks of a launch in batches, every instruction of the kernels bit
by bit: integers, float32 and float64 as IEEE rounds them, conversions, predicates, votes, shuffles, barriers, atomics,
global, shared, local, constant and parameter memory. Approximate instructions (ex2.approx and its like) return the true
value moved by an error inside the bound that PTX documents, so what holds here holds on any hardware that keeps it.
An instruction or modifier that is not modelled is refused by its name.

What it checks in every launch, with kernel, PTX line, line of the source, block and thread (`faults.Checker`):
- bounds: an access that is not wholly inside one allocation or variable, however little it is off;
- alignment: of the whole access, so 16 bytes for a vector of four floats;
- uninitialised: a value nobody wrote (registers, shared, local, fresh global memory) that decides a branch, an address,
  a vote, or what is left in global memory;
- race: two threads at the same bytes, one writing a different value, that no barrier orders: within a block, within a
  warp and, as nothing orders blocks, between blocks; and writes to what the launch reads through the read-only path;
- barrier and warp: barriers that a thread of the block has ended before or waits at elsewhere, warp operations whose
  lanes do not come or that name other lanes;
- launch: more threads, blocks, shared memory or other parameters than the kernel and every GPU take.

`library.py` links the host code that nvcc compiled to a runtime that hands its launches to this device, so grids, blocks
and arguments are the real launchers'. `launch.Device` reports which instructions were reached.

What it cannot show:
- that ptxas makes of the PTX what it says: machine code is not run (test_static.py reads it);
- the order in which one block sees another's writes; fences do nothing here, and kernels that need them would be
  reported as races. Threads run in step, in one order out of many; the race check is what speaks for the others;
- an access so far out of bounds that it lands in another live allocation; `volatile` and memory orders as such;
- occupancy, registers, bank conflicts, speed.

Files, bottom to top: `faults`, `program` and `parser` (text to values); `memory`, `races`, `registers`, `places`
(state); `machine` and `instructions/` (what each instruction does to it), `flow` (which threads run next); `launch`
(the device), `library` (the launchers on it).
"""
