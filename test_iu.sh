#!/usr/bin/env bash
# Score a checkpoint on IU X-Ray: the authors' weights, or yours with --load results/<run>/best.pt. Flags of main_test.py follow.
source "$(dirname "$0")/modules/launch/python.sh"
exec "$PYTHON" main_test.py --dataset_name iu_xray --load knowledge/released/iu_weight.pth "$@"
