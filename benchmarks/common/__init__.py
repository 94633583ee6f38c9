"""What the benchmarks share: records of results, runs that resume, the weave of the demo."""
