#!/usr/bin/env bash
# Train on MIMIC-CXR with the published settings. Every flag of main_train.py may follow, e.g. --model, --no-gid, --epochs 10.
source "$(dirname "$0")/modules/launch/python.sh"
exec "$PYTHON" main_train.py --dataset_name mimic_cxr "$@"
