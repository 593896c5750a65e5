"""Are faults that are drawn at random named, with their place, and harmless rewrites called parity?

    python -m benchmarks.fault_bench --seed 7

The way of the data: `kinds` draws faults (what, where, how large) and says what a verdict must name; `studio` records
the healthy and the faulty run, in PyTorch (`inject_*`) or in the Rust engine (`native`); `truth` compares the two bit
by bit, which tells where the fault first shows and whether it shows at all; `judge` sets tracekit's verdict beside it.
"""
