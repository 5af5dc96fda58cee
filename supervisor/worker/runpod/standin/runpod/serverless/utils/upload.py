"""Stands in for ``runpod.serverless.utils.upload``, the first versions' name of ``rp_upload``; old workers use it."""

import sys

from runpod.serverless.utils import rp_upload

sys.modules[__name__] = rp_upload
