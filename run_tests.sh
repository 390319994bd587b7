#!/usr/bin/env bash
# All tests and the style check, as many tests at a time as there are cores (-n 0: one after another).
# Arguments go to pytest: bash run_tests.sh -m "not slow" -k decoding
source "$(dirname "$0")/modules/launch/python.sh"
need tests/requirements.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the cores are busy with other tests
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest -n auto --dist worksteal "$@"
