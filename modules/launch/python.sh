# Sourced by every script: goes to the repository's root and sets PYTHON.
# An active environment that has PyTorch is used as it is: what it lacks is named, nothing is installed into it.
# Else .venv is made and filled, once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
LAUNCH=modules/launch

stop() { echo "error: $1" >&2; exit 2; }

# need FILE: every line of a requirements file is there; in .venv what is missing is installed
need() {
    local lacking
    lacking=$("$PYTHON" $LAUNCH/missing.py "$1") && return
    [ "$PYTHON" = .venv/bin/python ] \
        || stop "this environment ($("$PYTHON" -c 'import sys; print(sys.prefix)')) lacks $lacking: $PYTHON -m pip install $lacking"
    echo "installing $1 into .venv (once; PyTorch is large)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$1" || stop "pip could not install $1 (see above)"
}

PYTHON=$(command -v python || command -v python3 || true)
if [ -z "$PYTHON" ] || ! "$PYTHON" -c 'import importlib.util as i, sys; sys.exit(i.find_spec("torch") is None)' 2>/dev/null; then
    PYTHON=.venv/bin/python
    if [ ! -x "$PYTHON" ]; then
        BASE=$(command -v python3 || command -v python || true)
        [ -n "$BASE" ] && "$BASE" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
            || stop "Python 3.10 or newer is needed (found: ${BASE:-none})"
        "$BASE" -m venv .venv || stop "cannot make .venv; on Debian: apt install python3-venv"
    fi
fi
need requirements.txt
