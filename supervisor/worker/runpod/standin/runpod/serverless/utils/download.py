"""Stands in for ``runpod.serverless.utils.download``, the old name of ``rp_download``."""

import sys

from runpod.serverless.utils import rp_download

sys.modules[__name__] = rp_download
