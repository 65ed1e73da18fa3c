"""Random changes of training images: decided as pure functions of (seed, epoch, row), then carried out.

==================================== =================================================================================
what changes                         modules
==================================== =================================================================================
geometry, brightness, erasing        :mod:`~.augment` decides; the loaders of :mod:`brain_dist.stream` carry it out
tissue moved between images          :mod:`~.transplants` decides, :mod:`~.composing` and :mod:`~.blending` carry it out
intensity, sharpness, noise, texture :mod:`~.style` decides and carries out on the device, with :mod:`~.random_network`
                                     and :mod:`~.skull`
==================================== =================================================================================
"""
