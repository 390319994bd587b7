#!/usr/bin/env bash
# Style, types and all tests, as many tests at a time as there are cores (-n 0: one after another).
# Arguments go to pytest, and leave the types unchecked: bash run_tests.sh -m "not slow" -k decoding
source "$(dirname "$0")/modules/launch/python.sh"
need tests/requirements.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the cores are busy with other tests
"$PYTHON" -m ruff check .
[ $# -gt 0 ] || "$PYTHON" -m mypy # half a minute the first time, then seconds (.mypy_cache)
exec "$PYTHON" -m pytest -n auto --dist worksteal "$@"
