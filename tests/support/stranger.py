"""A process that knows a run's host and port, but not its secret: ``python stranger.py RANK FILE``.

It finds the name of the start among the keys of the rendezvous store, joins as rank RANK and sends a pickle that
creates FILE when it is loaded. MASTER_ADDR and MASTER_PORT tell the address.
"""

import datetime
import os
import pathlib
import sys
import time

import torch.distributed as dist


class Trap:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(sys.argv[2]),)


while True:
    try:
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        break
    except dist.DistNetworkError:
        time.sleep(0.1)
while not (keys := [key for key in store.list_keys() if "started" in key]):
    time.sleep(0.1)
name = keys[0].strip("/").split("/")[0]
store = dist.PrefixStore(name, store)
store.set("started/1", "1")
print("joins as a rank", flush=True)
timeout = datetime.timedelta(seconds=20)
dist.init_process_group("gloo", store=store, rank=int(sys.argv[1]), world_size=2, timeout=timeout)
dist.all_gather_object([None, None], Trap())
