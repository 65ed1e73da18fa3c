"""The browser edition: the page of the service as static files, with the network in it. No picture leaves the browser.

``files/pixels.js`` carries out ``preprocess.json`` as :mod:`brain_dist.stream.image` does, ``answers.js`` what
:mod:`brain_dist.prediction.answers` and :mod:`brain_dist.ood` do. Tests compare each pair.
"""

from pathlib import Path

FILES = Path(__file__).parent / "files"
