"""How fast the service answers, compared with the bare limit of the machine and with other servers.

    python -m ops.bench                               # `make bench-serve`: everything, about 40 minutes on two cores
    python -m ops.bench --quick --only ours,raw       # four minutes, while working on the service
    python -m ops.bench --arrangement separate --seconds 3 --rounds 1
    python -m ops.bench --only ours-int8,raw-int8 --also old=../old  # before and after a change, in one run
    python -m ops.bench soak --requests 100000        # does anything grow, or slow down?
    python -m ops.bench docs                          # puts the tables into the documentation

Each server is a real process that gets real forms over a real socket from ``wrk``, a load generator that takes about a
hundredth of the machine. There are two arrangements: generator and server on the same cores, and each on cores of its
own. Experiments are in ``ops/bench/NOTES.md``.
"""
