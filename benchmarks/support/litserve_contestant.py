"""The same model behind LitServe, in the peers' environment: ``litserve_contestant.py MODEL PORT BATCH WAIT``."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve


class Api(litserve.LitAPI):
    def __init__(self, model: str, max_batch: int, wait: float) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=wait)
        self.model = model

    def setup(self, device: Any) -> None:
        import torch

        from brain_dist.prediction.predictor import load

        torch.set_num_threads(1)
        self.predictor = load(self.model, device="cpu")

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe asks for a query by an annotation
        from brain_dist.prediction.reading import read_slices

        return read_slices(base64.b64decode(request["image"]), "", self.predictor.contract, list)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def unbatch(self, output: list[Any]) -> Any:
        return output

    def predict(self, inputs: Any) -> Any:
        files = inputs if isinstance(inputs[0], list) else [inputs]  # LitServe does not batch with max_batch_size=1
        outputs = iter(self.predictor.outputs([file[0].pixels for file in files]))
        answers = [self.predictor.answers("", file, outputs) for file in files]
        return answers if isinstance(inputs[0], list) else answers[0]

    def encode_response(self, output: Any) -> Any:
        return {"label": output[0].label, "probabilities": output[0].probabilities}


if __name__ == "__main__":
    model, port, batch, wait = sys.argv[1:]
    server = litserve.LitServer(Api(model, int(batch), float(wait)), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")
