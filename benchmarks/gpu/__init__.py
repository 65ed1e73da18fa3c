"""The stages of :mod:`benchmarks.gpu_check`. Only functions import packages, because the driver may not have any."""
