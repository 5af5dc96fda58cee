"""Stands in for ``runpod.serverless.utils.upload``, the old name of ``rp_upload``."""

import sys

from runpod.serverless.utils import rp_upload

sys.modules[__name__] = rp_upload
