"""What the service is compared with: the bare limit, and what a careful user would write with other tools.

All of them take the same model file from ``BENCH_MODEL``, decode with ``shared.pixels`` and answer a multipart form's
``file`` on ``POST /predict``. They run in an environment of their own, see ``ops/bench/requirements.txt``.
"""
