"""The clients of `serving.py`: a process of its own, which imports nothing of the package, so that it costs the server no time.

Its argument is JSON: the prompts and the number of tokens. For each line of its input, which is a port, it streams a text for each
prompt, all at once, and writes a line: for each prompt when its request was sent, and when each piece of its text arrived, in
seconds of the monotonic clock."""

from __future__ import annotations

import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

# Seconds until a client gives up.
PATIENCE = 600


def stream(tokens: int, port: int, prompt: str) -> list[float]:
    """The times of one prompt."""
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, "return_token_ids": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    times = [time.monotonic()]
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    for line in connection.getresponse():
        arrived = time.monotonic()
        if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["finish_reason"] is None:
            times.append(arrived)
    connection.close()
    return times


def main() -> None:
    prompts, tokens = json.loads(sys.argv[1])
    with ThreadPoolExecutor(len(prompts)) as pool:
        for port in sys.stdin:
            print(json.dumps(list(pool.map(partial(stream, tokens, int(port)), prompts))), flush=True)


if __name__ == "__main__":
    main()
