"""Where the time of a training step goes.

:mod:`~brain_dist.profiling.measure` measures real training steps (:mod:`~brain_dist.profiling.training_steps`) with
their memory (:mod:`~brain_dist.profiling.memory`) and power (:mod:`~brain_dist.profiling.power`), then the rate of a
matrix product (:mod:`~brain_dist.profiling.calibration`) and each stage alone
(:mod:`~brain_dist.profiling.isolated_stages`). :mod:`~brain_dist.profiling.profile` combines the measurements of all
ranks and names the bottleneck; :mod:`~brain_dist.profiling.report` prints and stores the result.
"""
