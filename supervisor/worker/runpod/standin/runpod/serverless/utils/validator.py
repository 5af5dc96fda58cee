"""Stands in for ``runpod.serverless.utils.validator``, the old name of ``rp_validator``."""

import sys

from runpod.serverless.utils import rp_validator

sys.modules[__name__] = rp_validator
