"""The one harness of all benchmarks: what a case is, how answers are checked, how time is taken, what is printed."""
