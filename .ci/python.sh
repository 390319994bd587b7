# Sourced by every script: goes to the repository's root and sets PYTHON to an interpreter that has requirements.txt.
# An active environment that has everything is respected; else .venv is made and filled.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=$(command -v python || command -v python3 || true)
if [ -z "$PYTHON" ] || ! "$PYTHON" .ci/has_requirements.py >/dev/null 2>&1; then
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python .ci/has_requirements.py >/dev/null 2>&1; then
        BASE=$(command -v python3 || command -v python || true)
        if [ -z "$BASE" ] || ! "$BASE" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            echo "error: Python 3.10 or newer is needed (found: ${BASE:-none})" >&2
            exit 2
        fi
        echo "installing requirements.txt into .venv (once; PyTorch is large)"
        "$BASE" -m venv .venv || { echo "error: cannot make .venv; on Debian: apt install python3-venv" >&2; exit 2; }
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
            || { echo "error: pip could not install requirements.txt (see above)" >&2; exit 2; }
    fi
    PYTHON=.venv/bin/python
fi
