"""A coroutine handler: it fetches web pages, and while one job waits for the network, up to eight share the worker.

Serve:  supervise handlers/async_fetch.py --gpus none
Ask:    curl localhost:8900/runsync -d '{"input": {"urls": ["https://example.com", "https://www.python.org"]}}'
"""

import asyncio
import hashlib
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

import runpod

MOST_URLS = 20
MOST_BYTES = 4 << 20  # of one page; the rest is not read
TIMEOUT = 10.0  # seconds for one page, and for each step on the way to it
MOST_JOBS = 8

# Only http and https, also after a redirect: the opener that urllib makes by default reads local files, too. Addresses of the
# private network are not refused; whoever may send jobs may read them.
web = urllib.request.OpenerDirector()
for part in (
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPErrorProcessor,
):
    web.add_handler(part())


async def handler(job):
    """Take ``urls`` (or one ``url``); say of each page its status, size, SHA-256 and time, or what went wrong."""
    given = job["input"] if isinstance(job["input"], dict) else {"urls": job["input"]}
    urls = given.get("urls", given.get("url"))
    urls = [urls] if isinstance(urls, str) else urls
    if not isinstance(urls, list) or not urls or not all(isinstance(url, str) for url in urls):
        return {"error": "input must have urls, a list of addresses, or url, one of them"}
    if len(urls) > MOST_URLS:
        return {"error": f"at most {MOST_URLS} urls in one job, not {len(urls)}"}
    unfit = [url for url in urls if not url.startswith(("http://", "https://")) or not host(url)]
    if unfit:
        return {"error": f"not an http or https address: {unfit[0]!r}"}

    done = 0

    async def one(url):
        nonlocal done
        page = await asyncio.to_thread(fetch, url)
        done += 1
        runpod.serverless.progress_update(job, {"fetched": done, "of": len(urls)})
        return page

    return {"pages": await asyncio.gather(*map(one, urls))}


def host(url):
    """The host in ``url``, if there is one."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def fetch(url):
    """Read one page in a thread of its own, as ``urllib`` waits."""
    began = time.monotonic()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "supervise-example"})
        with web.open(request, timeout=TIMEOUT) as response:
            digest, size = hashlib.sha256(), 0
            while size < MOST_BYTES and (piece := response.read1(min(65_536, MOST_BYTES - size))):
                digest.update(piece)
                size += len(piece)
                if time.monotonic() - began > TIMEOUT:
                    raise TimeoutError(f"took longer than {TIMEOUT:g} s")
            found = {"status": response.status, "bytes": size, "sha256": digest.hexdigest()}
    except urllib.error.HTTPError as error:
        found = {"status": error.code, "error": error.reason}
        error.close()
    except (OSError, HTTPException, ValueError) as error:
        found = {"error": str(error) or type(error).__name__}
    return {"url": url, **found, "ms": round(1000 * (time.monotonic() - began))}


def concurrency_modifier(current):
    """One job more each time, up to the most that make sense."""
    return min(current + 1, MOST_JOBS)


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler, "concurrency_modifier": concurrency_modifier})
