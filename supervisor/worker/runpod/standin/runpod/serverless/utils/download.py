"""Stands in for ``runpod.serverless.utils.download``, the first versions' name of ``rp_download``; old workers use it."""

import sys

from runpod.serverless.utils import rp_download

sys.modules[__name__] = rp_download
