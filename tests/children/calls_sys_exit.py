"""Calls ``sys.exit`` with a text, as scripts do."""

import sys

sys.exit("nothing more to do")
