#!/usr/bin/env bash
# All tests and the style check. Arguments go to pytest: bash run_tests.sh -m "not slow" -k decoding
source "$(dirname "$0")/modules/launch/python.sh"
need tests/requirements.txt
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest "$@"
