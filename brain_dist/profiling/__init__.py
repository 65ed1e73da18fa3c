"""Where the time of a training step goes.

:mod:`~brain_dist.profiling.run` measures and reports. It measures each stage alone
(:mod:`~brain_dist.profiling.isolated_stages`), then real training steps (:mod:`~brain_dist.profiling.training_steps`)
with their memory (:mod:`~brain_dist.profiling.memory`) and power (:mod:`~brain_dist.profiling.power`).
:mod:`~brain_dist.profiling.measure` combines the measurements of all ranks into a
:class:`~brain_dist.profiling.profile.Profile`, which names the bottleneck.
"""
