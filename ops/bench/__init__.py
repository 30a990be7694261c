"""How fast the service answers, beside the limit of its machine and beside what others would have written.

    python -m ops.bench                                   # `make bench-serve`: everything, about 25 minutes
    python -m ops.bench --quick --only ours,raw           # two minutes, while working on the service
    python -m ops.bench soak --requests 100000            # does it stay as it was?
    python -m ops.bench docs                              # puts the tables into docs/benchmarks.md

Each server is a real process that gets real forms over a real socket from ``wrk``, a load generator that takes about a
hundredth of the machine. What was tried and not kept is in ``ops/bench/NOTES.md``.
"""
