"""What is measured beside the service: the machine's own limit, and what a careful user would write with other tools.

All of them take the same model file from ``BENCH_MODEL``, decode with ``shared.pixels`` and answer a multipart form's
``file`` on ``POST /predict``. They run in an environment of their own, see ``ops/bench/requirements.txt``.
"""
