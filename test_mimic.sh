#!/usr/bin/env bash
# Score a checkpoint on MIMIC-CXR: the authors' weights, or yours with --load results/<run>/best.pt. Flags of main_test.py follow.
source "$(dirname "$0")/modules/launch/python.sh"
exec "$PYTHON" main_test.py --dataset_name mimic_cxr --load knowledge/released/mimic_weight.pth "$@"
