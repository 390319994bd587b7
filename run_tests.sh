#!/usr/bin/env bash
# All tests and the style check. Arguments go to pytest: bash run_tests.sh -k decoding
source "$(dirname "$0")/.ci/python.sh"
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest "$@"
