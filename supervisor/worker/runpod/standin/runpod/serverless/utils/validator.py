"""Stands in for ``runpod.serverless.utils.validator``, the first versions' name of ``rp_validator``; old workers use it."""

import sys

from runpod.serverless.utils import rp_validator

sys.modules[__name__] = rp_validator
