"""Does nothing for an hour."""

import time

print("good night", flush=True)
time.sleep(3600)
