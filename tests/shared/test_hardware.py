import json
import os
import platform

from shared import hardware


def test_the_description_names_the_processor_but_not_the_machine() -> None:
    found = hardware.describe()
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["memory_gb"] >= 1
    assert found["python"] == platform.python_version()
    assert os.uname().nodename not in json.dumps(found)


def test_cores_are_those_of_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert hardware.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
