"""Where the time of a training step goes.

:mod:`~brain_dist.profiling.measure` measures each stage alone (:mod:`~brain_dist.profiling.isolated_stages`), then real
training steps (:mod:`~brain_dist.profiling.training_steps`) with their memory (:mod:`~brain_dist.profiling.memory`) and
power (:mod:`~brain_dist.profiling.power`). :mod:`~brain_dist.profiling.profile` combines the measurements of all ranks
and names the bottleneck; :mod:`~brain_dist.profiling.report` prints and stores the result.
"""
