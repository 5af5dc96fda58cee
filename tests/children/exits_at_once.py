"""Ends without any ceremony, in the middle of a line."""

import os
import sys

print("one whole line")
sys.stdout.write("and half of ano")
os._exit(4)
