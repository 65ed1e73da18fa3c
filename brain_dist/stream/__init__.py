"""From row numbers to batches on the device: plan → job → loader → Batch → Normalize.

1. :mod:`~brain_dist.stream.plan` decides which rows each rank loads in each step, as :class:`~.plan.MicroBatch`.
   :mod:`~brain_dist.stream.balance` makes classes of unequal size count equally.
2. :mod:`brain_dist.augmentation` decides how each image is augmented. The decisions are a :class:`~.batch.Job`.
3. A loader carries out jobs in their order and makes no random decision. ``data.loader`` names it:
   :mod:`~brain_dist.stream.opencv_loader` (CPU), :mod:`~brain_dist.stream.dali_loader` (GPU) or
   :mod:`~brain_dist.stream.torch_loader` (reference). :mod:`~brain_dist.stream.pixels` defines the pixels of them all.
4. The loader yields a :class:`~brain_dist.stream.batch.Batch`: uint8 images and their labels on the device.
5. :class:`~brain_dist.stream.normalize.Normalize` turns the images into the network's input.

:mod:`~brain_dist.stream.batches` does steps 1 to 4 in one call, for training and for evaluation.

Steps 1 and 2 are pure functions of the seed, the epoch and the row (:mod:`~brain_dist.common.counter`). So any number
of ranks sees the same samples with the same augmentation, and a run resumes at any step without reading earlier data.
"""
